//! Between the domain and the contracts.

use florin::account::Account;
use florin::error::Error;
use florin::id::partition;
use florin::money::Money;
use florin::proto::balance::v1 as proto;
use florin::proto::common::v1::FactContext;
use florin::proto::ledger::v1::JournalEntry;
use florin::proto::ledger::v1::entries_recorded::Fact;
use florin::wire::{money, timestamp, trusted_money};

use crate::balance::{AsOf, Movement, Owned};
use crate::store::EntryOf;

/// A written entry, from ledger-svc.
///
/// # Errors
/// Something is missing or unknown; the sentence says what.
pub fn entry(fact: &Fact) -> Result<EntryOf, String> {
    let context = fact.context.as_ref().ok_or("the context is missing")?;
    let entry = fact.journal_entry.as_ref().ok_or("the entry is missing")?;
    entry_of(&context.merchant_id, entry)
}

/// An entry of a merchant's journal.
///
/// # Errors
/// Something is missing or unknown; the sentence says what.
pub fn entry_of(merchant: &str, entry: &JournalEntry) -> Result<EntryOf, String> {
    if entry.postings.is_empty() {
        return Err("the entry has no postings".to_owned());
    }
    // The slot is the message's partition, and that is its key's: one seller's accounts live in one slot.
    let key = if entry.seller_id.is_empty() { &entry.operation_id } else { &entry.seller_id };
    let slot = i16::try_from(partition(key)).unwrap_or_default();
    let movements = entry.postings.iter().map(|posting| {
        let amount = trusted_money(posting.amount.as_ref())?;
        let account = |code: &str| code.parse::<Account>().map_err(|error| format!("{code}: {error}"));
        let (debit, credit) = (account(&posting.debit_account)?, account(&posting.credit_account)?);
        if amount.minor_units < 1 || debit.currency != amount.currency || credit.currency != amount.currency {
            return Err(format!("leg {} does not move a positive amount in one currency", posting.leg));
        }
        Ok(Movement { merchant_id: merchant.to_owned(), debit, credit, amount: amount.minor_units, slot })
    });
    Ok(EntryOf {
        entry_id: entry.journal_entry_id.parse().map_err(|error| format!("journal_entry_id {error}"))?,
        movements: movements.collect::<Result<_, String>>()?,
    })
}

/// The balance for a caller.
///
/// # Errors
/// It does not fit 64 bits.
pub fn balance(account: &Account, as_of: &AsOf) -> Result<proto::Balance, Error> {
    let totals = as_of.totals;
    let balance = account.account_type.balance(totals.debits, totals.credits);
    let balance = balance.ok_or_else(|| Error::internal(format!("the balance of {account} does not fit 64 bits")))?;
    Ok(proto::Balance {
        account_code: account.to_string(),
        balance: Some(money(Money::new(account.currency, balance))),
        debit_minor_units: totals.debits,
        credit_minor_units: totals.credits,
        version: totals.version,
        as_of_time: Some(timestamp(as_of.at)),
    })
}

/// A changed balance for the world; `None` where it does not fit 64 bits, which reading it answers as an error.
#[must_use]
pub fn changed((merchant, account): &Owned, as_of: &AsOf) -> Option<proto::balances_changed::Fact> {
    let context = FactContext {
        merchant_id: merchant.clone(),
        aggregate_id: account.to_string(),
        version: as_of.totals.version,
        occur_time: Some(timestamp(as_of.at)),
        record_time: Some(timestamp(as_of.at)),
        ..FactContext::default()
    };
    Some(proto::balances_changed::Fact { context: Some(context), balance: Some(balance(account, as_of).ok()?) })
}
