//! Orders to pay: the same seed makes the same ones.

use florin::proto::common::v1::Money;
use florin::proto::payment::v1::{CreatePaymentRequest, PaymentLine, PaymentSource};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng as _};

/// Currencies with exponents 0, 2 and 3, and the largest amount of a line in minor units.
const CURRENCIES: [(&str, i64); 5] =
    [("EUR", 50_000), ("USD", 50_000), ("GBP", 50_000), ("JPY", 80_000), ("KWD", 90_000)];
/// Sellers of the marketplace.
const SELLERS: u32 = 40;

/// Order `number` of a run: 1 to 5 sellers in one currency.
pub(super) fn order(seed: u64, number: u32, token: &str) -> CreatePaymentRequest {
    let mut random = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(u64::from(number)));
    let (currency, largest) = CURRENCIES[random.random_range(0..CURRENCIES.len())];
    let money = |minor_units| Some(Money { currency_code: currency.to_owned(), minor_units });
    let lines: Vec<PaymentLine> = (0..random.random_range(1..=5_u32))
        .map(|line| PaymentLine {
            seller_id: format!("seller-{:02}", random.random_range(1..=SELLERS)),
            amount: money(random.random_range(100..=largest)),
            seller_reference: format!("line-{line}"),
        })
        .collect();
    let total = lines.iter().filter_map(|line| line.amount.as_ref()).map(|amount| amount.minor_units).sum();
    CreatePaymentRequest {
        order_id: format!("load-{seed}-{number}"),
        buyer_id: format!("buyer-{:03}", random.random_range(1..=500_u32)),
        total: money(total),
        payment_source: Some(PaymentSource { token: token.to_owned() }),
        lines,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_orders_in_every_exponent() {
        assert_eq!(order(7, 3, "tok_ok"), order(7, 3, "tok_ok"));
        assert_ne!(order(7, 3, "tok_ok"), order(8, 3, "tok_ok"));
        for (currency, _) in CURRENCIES {
            assert!((0..100).any(|n| order(1, n, "t").total.unwrap().currency_code == currency), "{currency}");
        }
    }
}
