//! Between the domain and the contracts.

use chrono::{DateTime, Utc};
use florin::account::Account;
use florin::envelope::Keyed;
use florin::error::{Reason, Violation};
use florin::id::{ChargeId, EventId, JournalEntryId};
use florin::money::Money;
use florin::proto::common::v1::FactContext;
use florin::proto::ledger::v1 as proto;
use florin::proto::payment::v1::payment_orders_succeeded::Fact;
use florin::wire::{caller_id, money, time, timestamp, trusted_money, violation};

use crate::posting::{Capture, Entry, Kind, Posting};
use crate::store::{Line, Stored};

/// A captured payment order, from payment-api.
///
/// # Errors
/// Something is missing or unknown; the sentence says what.
pub fn capture(fact: &Fact, event_id: EventId) -> Result<Capture, String> {
    let context = fact.context.as_ref().ok_or("the context is missing")?;
    let amount = trusted_money(fact.amount.as_ref())?;
    let fee = match fact.fee.as_ref().and_then(|fee| fee.amount.as_ref()) {
        Some(fee) => trusted_money(Some(fee))?,
        None => Money::new(amount.currency, 0),
    };
    let at = context.occur_time.as_ref().and_then(time).ok_or("the time is missing")?;
    Ok(Capture {
        merchant_id: context.merchant_id.clone(),
        payment_id: fact.payment_id.parse().map_err(|error| format!("payment_id {error}"))?,
        payment_order_id: fact.payment_order_id.parse().map_err(|error| format!("payment_order_id {error}"))?,
        charge_id: fact.charge_id.parse().map_err(|error| format!("charge_id {error}"))?,
        // They become account codes: what is no id of a caller cannot be booked.
        seller_id: caller_id("seller_id", &fact.seller_id).map_err(|v| format!("seller_id {}", v.description))?,
        psp_account: caller_id("psp_account", &fact.psp_account)
            .map_err(|v| format!("psp_account {}", v.description))?,
        amount,
        fee,
        event_id,
        effective_at: at,
    })
}

/// An entry that was written, for balance-svc and the world.
#[must_use]
pub fn recorded(
    entry: &Entry,
    sequence: i64,
    booked_at: DateTime<Utc>,
    traceparent: String,
) -> Keyed<proto::entries_recorded::Fact> {
    let context = FactContext {
        merchant_id: entry.merchant_id.clone(),
        aggregate_id: entry.entry_id.to_string(),
        version: 1,
        causation_id: entry.event_id.to_string(),
        traceparent: traceparent.clone(),
        occur_time: Some(timestamp(entry.effective_at)),
        record_time: Some(timestamp(booked_at)),
    };
    let stored = Stored { entry: entry.clone(), sequence, booked_at };
    let fact = proto::entries_recorded::Fact { context: Some(context), journal_entry: Some(journal_entry(&stored)) };
    // One seller's entries travel together; entries of no seller by their operation.
    let key = entry.seller_id.clone().unwrap_or_else(|| entry.operation_id.to_string());
    Keyed { key, causation_id: Some(entry.event_id), traceparent, fact }
}

/// The entry for a caller.
#[must_use]
pub fn journal_entry(stored: &Stored) -> proto::JournalEntry {
    let entry = &stored.entry;
    proto::JournalEntry {
        journal_entry_id: entry.entry_id.to_string(),
        kind: kind(entry.kind).into(),
        operation_id: ChargeId::from_uuid(entry.operation_id).to_string(),
        payment_id: entry.payment_id.map(|id| id.to_string()).unwrap_or_default(),
        payment_order_id: entry.payment_order_id.map(|id| id.to_string()).unwrap_or_default(),
        seller_id: entry.seller_id.clone().unwrap_or_default(),
        causation_id: entry.event_id.to_string(),
        postings: (1..).zip(&entry.postings).map(|(leg, posting)| self::posting(leg, posting)).collect(),
        effective_time: Some(timestamp(entry.effective_at)),
        booking_time: Some(timestamp(stored.booked_at)),
        sequence: stored.sequence,
    }
}

fn posting(leg: i32, posting: &Posting) -> proto::Posting {
    proto::Posting {
        leg,
        debit_account: posting.debit.to_string(),
        credit_account: posting.credit.to_string(),
        amount: Some(money(Money::new(posting.debit.currency, posting.amount))),
    }
}

fn kind(kind: Kind) -> proto::JournalKind {
    match kind {
        Kind::AuthHold => proto::JournalKind::AuthHold,
        Kind::Capture => proto::JournalKind::Capture,
        Kind::Fee => proto::JournalKind::Fee,
        Kind::Available => proto::JournalKind::Available,
        Kind::Void => proto::JournalKind::Void,
        Kind::Settlement => proto::JournalKind::Settlement,
        Kind::Payout => proto::JournalKind::Payout,
        Kind::Refund => proto::JournalKind::Refund,
        Kind::Dispute => proto::JournalKind::Dispute,
        Kind::Reserve => proto::JournalKind::Reserve,
        Kind::Unexpected => proto::JournalKind::Unexpected,
        Kind::Adjustment => proto::JournalKind::Adjustment,
        Kind::Fx => proto::JournalKind::Fx,
    }
}

/// Kinds of a filter, as the database holds them.
///
/// # Errors
/// One is unspecified or unknown.
pub fn kinds(values: &[i32]) -> Result<Vec<String>, Violation> {
    let known = |(index, value): (usize, &i32)| {
        let found = proto::JournalKind::try_from(*value).ok().filter(|kind| *kind != proto::JournalKind::Unspecified);
        let name = found.and_then(|kind| kind.as_str_name().strip_prefix("JOURNAL_KIND_"));
        name.map(ToOwned::to_owned)
            .ok_or_else(|| violation(format!("kinds[{index}]"), Reason::EnumInvalid, "must be a known kind"))
    };
    values.iter().enumerate().map(known).collect()
}

/// A line of a statement for a caller.
///
/// # Errors
/// The journal holds a kind that this version does not know, or a balance that does not fit.
pub fn statement_line(account: &Account, line: &Line) -> Result<proto::StatementLine, String> {
    let of = |units| Some(money(Money::new(account.currency, units)));
    let known: Kind = line.kind.parse().map_err(|error: florin::stored::UnknownText| error.to_string())?;
    let running = account.account_type.balance(line.running, 0).ok_or("the balance does not fit 64 bits")?;
    Ok(proto::StatementLine {
        journal_entry_id: JournalEntryId::from_uuid(line.entry_id).to_string(),
        kind: kind(known).into(),
        leg: line.leg.into(),
        counter_account: format!("{}.{}.{}", line.counter_type, line.counter_entity, account.currency),
        debit: of(line.debit),
        credit: of(line.credit),
        running_balance: of(running),
        payment_order_id: line
            .payment_order_id
            .map(|id| florin::id::PaymentOrderId::from_uuid(id).to_string())
            .unwrap_or_default(),
        effective_time: Some(timestamp(line.effective_at)),
        booking_time: Some(timestamp(line.booked_at)),
        sequence: line.entry_sequence,
    })
}
