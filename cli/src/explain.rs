//! Explains a payment from the call to the cent.

use florin::proto::balance::v1::{Balance, GetBalanceRequest};
use florin::proto::ledger::v1::{JournalEntry, ListJournalEntriesRequest};
use florin::proto::payment::v1::{Payment, PaymentOrder};
use florin::proto::psp::v1::{Charge, GetChargeRequest};

use crate::Result;
use crate::books::show_entries;
use crate::connection::{Connection, refused};
use crate::output::{Output, Table, amount, short, time, value};
use crate::pay::{payment, show};

/// All that is known of a payment.
#[derive(Debug)]
pub struct Explained {
    payment: Payment,
    charges: Vec<Charge>,
    entries: Vec<JournalEntry>,
    balances: Vec<Balance>,
}

impl Explained {
    /// As one document.
    ///
    /// # Errors
    /// Never, for messages of the contracts.
    pub fn to_json(&self) -> Result<serde_json::Value> {
        Ok(serde_json::json!({
            "payment": value(&self.payment)?,
            "charges": self.charges.iter().map(value).collect::<Result<Vec<_>>>()?,
            "journalEntries": self.entries.iter().map(value).collect::<Result<Vec<_>>>()?,
            "balances": self.balances.iter().map(value).collect::<Result<Vec<_>>>()?,
        }))
    }
}

/// Gathers a payment's orders, every call to the PSP, every entry, and the balances they led to.
///
/// # Errors
/// There is no such payment, or a service does not answer.
pub async fn gather(connection: &Connection, payment_id: &str) -> Result<Explained> {
    let payment = payment(connection, payment_id).await?;
    let mut charges = Vec::new();
    for order in &payment.payment_orders {
        let request = GetChargeRequest { payment_order_id: order.payment_order_id.clone() };
        charges.push(connection.charges()?.get_charge(request).await.map_err(refused)?.into_inner());
    }
    let request = ListJournalEntriesRequest { payment_id: payment_id.to_owned(), page_size: 500, ..Default::default() };
    let answer = connection.ledger()?.list_journal_entries(request).await.map_err(refused)?;
    let mut entries = answer.into_inner().journal_entries;
    entries.sort_by_key(|entry| entry.sequence);
    let balances = balances(connection, &payment.payment_orders).await?;
    Ok(Explained { payment, charges, entries, balances })
}

/// Explains a payment from the call to the cent.
///
/// # Errors
/// There is no such payment, or a service does not answer.
pub async fn explain(connection: &Connection, output: Output, payment_id: &str) -> Result<bool> {
    let explained = gather(connection, payment_id).await?;
    if output.json {
        println!("{}", serde_json::to_string_pretty(&explained.to_json()?).map_err(|error| error.to_string())?);
        return Ok(true);
    }
    let Explained { payment, charges, entries, balances } = &explained;
    println!("THE CALL  accepted {}", time(payment.create_time.as_ref()));
    show(payment);
    for (order, charge) in payment.payment_orders.iter().zip(charges) {
        println!("\nAT THE PSP  {} for {} ({})", charge.charge_id, order.seller_id, amount(order.amount.as_ref()));
        show_charge(charge);
    }
    println!("\nIN THE LEDGER");
    show_entries(entries);
    println!("\nIN THE BALANCES");
    let mut table = Table::new(&["ACCOUNT", ">BALANCE", ">VERSION", "AS OF"]);
    for found in balances {
        let as_of = time(found.as_of_time.as_ref());
        table.row([found.account_code.clone(), amount(found.balance.as_ref()), found.version.to_string(), as_of]);
    }
    table.print();
    Ok(true)
}

fn show_charge(charge: &Charge) {
    let mut table = Table::new(&["WHEN", "WHAT", "RESULT", "CODE", "KEY"]);
    let mut lines: Vec<(String, [String; 5])> = Vec::new();
    for attempt in &charge.attempts {
        let when = time(attempt.send_time.as_ref());
        let what = format!("charge {}", attempt.attempt_number);
        let result = short(attempt.state().as_str_name(), "ATTEMPT_STATE_");
        lines.push((
            when.clone(),
            [when, what, result, attempt.code.clone(), format!("generation {}", attempt.generation)],
        ));
    }
    for inquiry in &charge.inquiries {
        let when = time(inquiry.send_time.as_ref());
        let what = format!("inquiry {}", inquiry.inquiry_number);
        let result = short(inquiry.result().as_str_name(), "INQUIRY_RESULT_");
        lines.push((when.clone(), [when, what, result, inquiry.code.clone(), String::new()]));
    }
    lines.sort();
    for (_, cells) in lines {
        table.row(cells);
    }
    table.print();
}

/// The balances of the accounts that these orders were posted to.
async fn balances(connection: &Connection, orders: &[PaymentOrder]) -> Result<Vec<Balance>> {
    let mut accounts: Vec<String> = Vec::new();
    for order in orders.iter().filter(|order| order.captured.as_ref().is_some_and(|captured| captured.minor_units > 0))
    {
        let currency = order.amount.as_ref().map(|amount| amount.currency_code.clone()).unwrap_or_default();
        accounts.push(format!("SELLER_PENDING.{}.{currency}", order.seller_id));
        accounts.push(format!("PSP_RECEIVABLE.{}.{currency}", order.psp_account));
        accounts.push(format!("PLATFORM_FEE_REVENUE.platform.{currency}"));
    }
    accounts.sort();
    accounts.dedup();
    let mut found = Vec::new();
    for account_code in accounts {
        let request = GetBalanceRequest { account_code, ..Default::default() };
        found.push(connection.balances()?.get_balance(request).await.map_err(refused)?.into_inner());
    }
    Ok(found)
}
