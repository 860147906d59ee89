//! Creating, showing, watching and listing payments.

use std::str::FromStr as _;

use florin::money::Currency;
use florin::proto::common::v1::Money;
use florin::proto::ledger::v1::GetJournalEntryRequest;
use florin::proto::payment::v1 as proto;
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive as _;
use tonic::Request;
use uuid::Uuid;

use crate::Result;
use crate::arguments::{Filter, NewOrder};
use crate::connection::{Connection, refused};
use crate::output::{Output, Table, amount, short, time};

/// Creates a payment.
///
/// # Errors
/// It is refused, or payment-api does not answer.
pub async fn create(connection: &Connection, output: Output, order: NewOrder) -> Result<bool> {
    let currency = Currency::from_str(&order.currency).map_err(|error| error.to_string())?;
    let lines = order.lines.iter().map(|line| read_line(line, currency)).collect::<Result<Vec<_>>>()?;
    let total = lines
        .iter()
        .filter_map(|line| line.amount.as_ref())
        .try_fold(0_i64, |sum, amount| sum.checked_add(amount.minor_units));
    let request = proto::CreatePaymentRequest {
        order_id: order.order_id.unwrap_or_else(|| format!("order-{}", Uuid::now_v7())),
        buyer_id: order.buyer_id,
        total: Some(Money {
            currency_code: order.currency,
            minor_units: total.ok_or("the lines add up to more than fits")?,
        }),
        payment_source: Some(proto::PaymentSource { token: order.token }),
        lines,
        wait: Some(prost_types::Duration { seconds: order.wait, nanos: 0 }),
        validate_only: order.validate_only,
        ..Default::default()
    };
    let key = order.key.unwrap_or_else(|| Uuid::now_v7().to_string());
    let mut request = Request::new(request);
    let value = key.parse().map_err(|_| "the key must be visible ASCII".to_owned())?;
    request.metadata_mut().insert("idempotency-key", value);
    let response = connection.payments()?.create_payment(request).await.map_err(refused)?;
    if response.metadata().contains_key(florin::server::REPLAYED) && !output.json {
        println!("(replayed: the key was used before)");
    }
    output.print(response.get_ref(), show)?;
    Ok(true)
}

/// `SELLER=AMOUNT` or `SELLER=AMOUNT:REFERENCE`, in major units.
fn read_line(text: &str, currency: Currency) -> Result<proto::PaymentLine> {
    let (seller, rest) = text.split_once('=').ok_or_else(|| format!("--line {text}: must be SELLER=AMOUNT"))?;
    let (figure, reference) = rest.split_once(':').unwrap_or((rest, ""));
    let decimal = Decimal::from_str(figure).map_err(|_| format!("--line {text}: {figure} is no amount"))?;
    let minor = decimal * Decimal::from(10_u64.pow(currency.exponent()));
    let exact = minor.is_integer().then(|| minor.to_i64()).flatten();
    let minor_units =
        exact.ok_or_else(|| format!("--line {text}: {currency} has {} decimal places", currency.exponent()))?;
    Ok(proto::PaymentLine {
        seller_id: seller.to_owned(),
        amount: Some(Money { currency_code: currency.to_string(), minor_units }),
        seller_reference: reference.to_owned(),
    })
}

/// Shows what an id stands for.
///
/// # Errors
/// There is no such thing, or its service does not answer.
pub async fn get(connection: &Connection, output: Output, id: &str) -> Result<bool> {
    if id.starts_with("po_") {
        let request = proto::GetPaymentOrderRequest { payment_order_id: id.to_owned() };
        let order = connection.payments()?.get_payment_order(request).await.map_err(refused)?;
        output.print(order.get_ref(), |order| show_orders(std::slice::from_ref(order)))?;
    } else if id.starts_with("je_") {
        let request = GetJournalEntryRequest { journal_entry_id: id.to_owned() };
        let entry = connection.ledger()?.get_journal_entry(request).await.map_err(refused)?;
        output.print(entry.get_ref(), |entry| crate::books::show_entries(std::slice::from_ref(entry)))?;
    } else {
        output.print(&payment(connection, id).await?, show)?;
    }
    Ok(true)
}

/// A payment by its id.
///
/// # Errors
/// There is none, or payment-api does not answer.
pub async fn payment(connection: &Connection, payment_id: &str) -> Result<proto::Payment> {
    let request = proto::GetPaymentRequest { payment_id: payment_id.to_owned() };
    Ok(connection.payments()?.get_payment(request).await.map_err(refused)?.into_inner())
}

/// Shows a payment after each change, until it is final.
///
/// # Errors
/// There is none, or payment-api does not answer any more.
pub async fn watch(connection: &Connection, output: Output, payment_id: &str) -> Result<bool> {
    let request = proto::WatchPaymentRequest { payment_id: payment_id.to_owned() };
    let mut changes = connection.payments()?.watch_payment(request).await.map_err(refused)?.into_inner();
    while let Some(payment) = changes.message().await.map_err(refused)? {
        output.print(&payment, |payment| {
            show(payment);
            println!();
        })?;
    }
    Ok(true)
}

/// Lists payments.
///
/// # Errors
/// A filter is refused, or payment-api does not answer.
pub async fn list(connection: &Connection, output: Output, filter: Filter) -> Result<bool> {
    let states = filter.state.iter().map(|name| {
        let known = proto::PaymentState::from_str_name(&format!("PAYMENT_STATE_{name}"));
        known.map(i32::from).ok_or_else(|| format!("--state {name}: no such state"))
    });
    let request = proto::ListPaymentsRequest {
        page_size: filter.limit,
        order_id: filter.order_id.unwrap_or_default(),
        buyer_id: filter.buyer_id.unwrap_or_default(),
        seller_id: filter.seller.unwrap_or_default(),
        states: states.collect::<Result<_>>()?,
        ..Default::default()
    };
    let answer = connection.payments()?.list_payments(request).await.map_err(refused)?;
    output.print(answer.get_ref(), |answer| {
        let mut table = Table::new(&["PAYMENT", "ORDER", "STATE", ">TOTAL", ">SELLERS", "CREATED"]);
        for payment in &answer.payments {
            table.row([
                payment.payment_id.clone(),
                payment.order_id.clone(),
                short(payment.state().as_str_name(), "PAYMENT_STATE_"),
                amount(payment.total.as_ref()),
                payment.payment_orders.len().to_string(),
                time(payment.create_time.as_ref()),
            ]);
        }
        table.print();
    })?;
    Ok(true)
}

/// Lists payment orders.
///
/// # Errors
/// A filter is refused, or payment-api does not answer.
pub async fn orders(connection: &Connection, output: Output, filter: Filter) -> Result<bool> {
    let states = filter.state.iter().map(|name| {
        let known = proto::PaymentOrderState::from_str_name(&format!("PAYMENT_ORDER_STATE_{name}"));
        known.map(i32::from).ok_or_else(|| format!("--state {name}: no such state"))
    });
    let request = proto::ListPaymentOrdersRequest {
        page_size: filter.limit,
        seller_id: filter.seller.unwrap_or_default(),
        states: states.collect::<Result<_>>()?,
        outcome_uncertain: filter.uncertain,
        ..Default::default()
    };
    let answer = connection.payments()?.list_payment_orders(request).await.map_err(refused)?;
    output.print(answer.get_ref(), |answer| show_orders(&answer.payment_orders))?;
    Ok(true)
}

/// Prints a payment for people.
pub fn show(payment: &proto::Payment) {
    let state = short(payment.state().as_str_name(), "PAYMENT_STATE_");
    println!(
        "{}  {state}  {}  order {}  version {}",
        payment.payment_id,
        amount(payment.total.as_ref()),
        payment.order_id,
        payment.version
    );
    show_orders(&payment.payment_orders);
}

/// Prints payment orders for people.
pub fn show_orders(orders: &[proto::PaymentOrder]) {
    let mut table = Table::new(&["PAYMENT ORDER", "SELLER", "STATE", ">AMOUNT", ">FEE", ">CALLS", "NOTE"]);
    for order in orders {
        let note = match (&order.failure, &order.outcome_uncertain_since) {
            (Some(failure), _) => {
                format!("{} {}", short(failure.reason().as_str_name(), "FAILURE_REASON_"), failure.psp_code)
            }
            (None, Some(since)) => format!("uncertain since {}", time(Some(since))),
            (None, None) => order.psp_reference.clone(),
        };
        table.row([
            order.payment_order_id.clone(),
            order.seller_id.clone(),
            short(order.state().as_str_name(), "PAYMENT_ORDER_STATE_"),
            amount(order.amount.as_ref()),
            amount(order.fee.as_ref().and_then(|fee| fee.amount.as_ref())),
            order.attempt_count.to_string(),
            note,
        ]);
    }
    table.print();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_in_major_units() {
        let line = |text: &str, currency: &str| {
            read_line(text, currency.parse().unwrap())
                .map(|line| (line.seller_id, line.amount.unwrap().minor_units, line.seller_reference))
        };
        assert_eq!(line("alice=10.00", "EUR"), Ok(("alice".into(), 1000, String::new())));
        assert_eq!(line("a=0.5:r-1", "KWD"), Ok(("a".into(), 500, "r-1".into())));
        for (wrong, currency) in [("alice", "EUR"), ("alice=x", "EUR"), ("alice=0.5", "JPY"), ("alice=0.001", "EUR")] {
            assert!(line(wrong, currency).is_err(), "{wrong}");
        }
    }
}
