//! Reading the books: balances, statements, the trial balance.

use florin::proto::balance::v1 as balance;
use florin::proto::ledger::v1 as ledger;

use crate::Result;
use crate::connection::{Connection, refused};
use crate::output::{Output, Table, amount, short, time, units};

/// Shows an account's balance.
///
/// # Errors
/// The account is malformed, or balance-svc does not answer.
pub async fn balance(connection: &Connection, output: Output, account: &str, strong: bool) -> Result<bool> {
    let request = balance::GetBalanceRequest { account_code: account.to_owned(), strong, ..Default::default() };
    let answer = connection.balances()?.get_balance(request).await.map_err(refused)?;
    output.print(answer.get_ref(), |found| {
        println!(
            "{}  {}  version {}  as of {}",
            found.account_code,
            amount(found.balance.as_ref()),
            found.version,
            time(found.as_of_time.as_ref())
        );
    })?;
    Ok(true)
}

/// Shows what a seller has.
///
/// # Errors
/// balance-svc does not answer.
pub async fn seller_balances(connection: &Connection, output: Output, seller: &str) -> Result<bool> {
    let request = balance::ListSellerBalancesRequest { seller_id: seller.to_owned(), ..Default::default() };
    let answer = connection.balances()?.list_seller_balances(request).await.map_err(refused)?;
    output.print(answer.get_ref(), |answer| {
        let mut table = Table::new(&["SELLER", "CURRENCY", ">PENDING", ">AVAILABLE", ">RESERVED", ">IN TRANSIT"]);
        for found in &answer.balances {
            table.row(seller_row(seller, found));
        }
        table.print();
    })?;
    Ok(true)
}

/// The cells of a seller's balance.
pub fn seller_row(seller: &str, found: &balance::SellerBalance) -> [String; 6] {
    [
        seller.to_owned(),
        found.currency_code.clone(),
        amount(found.pending.as_ref()),
        amount(found.available.as_ref()),
        amount(found.reserved.as_ref()),
        amount(found.in_transit.as_ref()),
    ]
}

/// Shows an account's statement.
///
/// # Errors
/// The account is malformed, or ledger-svc does not answer.
pub async fn statement(connection: &Connection, output: Output, account: &str, limit: i32) -> Result<bool> {
    let request = ledger::GetAccountStatementRequest {
        account_code: account.to_owned(),
        page_size: limit,
        page_token: String::new(),
    };
    let answer = connection.ledger()?.get_account_statement(request).await.map_err(refused)?;
    output.print(answer.get_ref(), |answer| {
        let mut table = Table::new(&["WHEN", "KIND", "COUNTER ACCOUNT", ">DEBIT", ">CREDIT", ">BALANCE", "ENTRY"]);
        for line in &answer.lines {
            let side = |money: &Option<florin::proto::common::v1::Money>| match money {
                Some(money) if money.minor_units != 0 => amount(Some(money)),
                _ => String::new(),
            };
            table.row([
                time(line.effective_time.as_ref()),
                short(line.kind().as_str_name(), "JOURNAL_KIND_"),
                line.counter_account.clone(),
                side(&line.debit),
                side(&line.credit),
                amount(line.running_balance.as_ref()),
                line.journal_entry_id.clone(),
            ]);
        }
        table.print();
        println!("balance {}", amount(answer.balance.as_ref()));
    })?;
    Ok(true)
}

/// Shows the totals per account type and currency.
///
/// # Errors
/// ledger-svc does not answer.
pub async fn trial_balance(connection: &Connection, output: Output) -> Result<bool> {
    let answer = connection.ledger()?.get_trial_balance(ledger::GetTrialBalanceRequest {}).await.map_err(refused)?;
    output.print(answer.get_ref(), show_trial_balance)?;
    Ok(true)
}

/// Prints a trial balance for people.
pub fn show_trial_balance(answer: &ledger::GetTrialBalanceResponse) {
    let mut table = Table::new(&["CURRENCY", "ACCOUNT TYPE", ">DEBITS", ">CREDITS"]);
    for line in &answer.lines {
        let of = |minor_units| units(minor_units, &line.currency_code);
        table.row([
            line.currency_code.clone(),
            line.account_type.clone(),
            of(line.debit_minor_units),
            of(line.credit_minor_units),
        ]);
    }
    for total in &answer.totals {
        let of = |minor_units| units(minor_units, &total.currency_code);
        table.row([
            total.currency_code.clone(),
            "= total".to_owned(),
            of(total.debit_minor_units),
            of(total.credit_minor_units),
        ]);
    }
    table.print();
}

/// Prints journal entries for people.
pub fn show_entries(entries: &[ledger::JournalEntry]) {
    let mut table = Table::new(&["ENTRY", "KIND", "DEBIT", "CREDIT", ">AMOUNT"]);
    for entry in entries {
        for posting in &entry.postings {
            table.row([
                entry.journal_entry_id.clone(),
                short(entry.kind().as_str_name(), "JOURNAL_KIND_"),
                posting.debit_account.clone(),
                posting.credit_account.clone(),
                amount(posting.amount.as_ref()),
            ]);
        }
    }
    table.print();
}
