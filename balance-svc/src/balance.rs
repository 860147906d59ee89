//! The domain: totals of an account and their fold. Pure, no I/O.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use florin::account::Account;

/// Totals of an account in minor units of its currency.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Sum of debits.
    pub debits: i64,
    /// Sum of credits.
    pub credits: i64,
    /// How many postings they hold.
    pub version: i64,
}

impl Totals {
    /// Adds one posting's side; `None` where it does not fit 64 bits.
    #[must_use]
    pub fn add(self, debit: i64, credit: i64) -> Option<Self> {
        Some(Self {
            debits: self.debits.checked_add(debit)?,
            credits: self.credits.checked_add(credit)?,
            version: self.version + 1,
        })
    }
}

/// An account of a merchant.
pub type Owned = (String, Account);

/// A movement of money between two accounts of a merchant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Movement {
    /// The merchant.
    pub merchant_id: String,
    /// What is debited.
    pub debit: Account,
    /// What is credited.
    pub credit: Account,
    /// Minor units; positive.
    pub amount: i64,
    /// The slot that it is folded into.
    pub slot: i16,
}

/// Totals by merchant, account code and slot.
pub type Folded = BTreeMap<(String, String, i16), (Account, Totals)>;

/// The totals that movements add up to, per account and slot; `None` where they do not fit 64 bits.
#[must_use]
pub fn fold<'a>(movements: impl IntoIterator<Item = &'a Movement>) -> Option<Folded> {
    let mut folded = Folded::new();
    for movement in movements {
        for (account, debit, credit) in [(&movement.debit, movement.amount, 0), (&movement.credit, 0, movement.amount)]
        {
            let key = (movement.merchant_id.clone(), account.to_string(), movement.slot);
            let (_, totals) = folded.entry(key).or_insert_with(|| (account.clone(), Totals::default()));
            *totals = totals.add(debit, credit)?;
        }
    }
    Some(folded)
}

/// Totals with the time that they were true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AsOf {
    /// The totals.
    pub totals: Totals,
    /// They hold every posting that was applied at this time.
    pub at: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use florin::account::AccountType;
    use proptest::prelude::*;

    use super::*;

    fn movement(seller: u8, amount: i64, slot: i16) -> Movement {
        let currency = "EUR".parse().unwrap();
        Movement {
            merchant_id: "dev".into(),
            debit: Account::new(AccountType::PspReceivable, "main", currency),
            credit: Account::new(AccountType::SellerPending, format!("s{seller}"), currency),
            amount,
            slot,
        }
    }

    #[test]
    fn sums_that_do_not_fit_are_refused() {
        assert_eq!(fold([&movement(1, i64::MAX, 0), &movement(1, 1, 0)]), None);
    }

    proptest! {
        /// Batch = one by one, in any order; and debits equal credits whatever was folded.
        #[test]
        fn folding_does_not_depend_on_order(moves in proptest::collection::vec((0_u8..4, 1_i64..1000, 0_i16..3), 0..40)) {
            let movements: Vec<Movement> = moves.iter().map(|(seller, amount, slot)| movement(*seller, *amount, *slot)).collect();
            let folded = fold(&movements).unwrap();
            prop_assert_eq!(&folded, &fold(movements.iter().rev()).unwrap());
            let sum = |side: fn(&Totals) -> i64| folded.values().map(|(_, totals)| side(totals)).sum::<i64>();
            prop_assert_eq!(sum(|totals| totals.debits), sum(|totals| totals.credits));
            prop_assert_eq!(usize::try_from(sum(|totals| totals.version)).unwrap(), movements.len() * 2);
        }
    }
}
