//! Writing entries.

use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;

use chrono::{DateTime, Utc};
use florin::account::Account;
use florin::id::JournalEntryId;
use florin::pg::Tx;
use florin::proto::ledger::v1::EntriesRecorded;
use florin::{envelope, outbox, telemetry};
use uuid::Uuid;

use super::{Known, Store};
use crate::posting::{Entry, Posting};
use crate::wire;

/// Accounts kept in memory at most; beyond that they are looked up.
const MAX_KNOWN: usize = 200_000;

/// An entry with where it came from.
#[derive(Debug, Clone)]
pub struct EntryOf {
    /// The entry.
    pub entry: Entry,
    /// Trace context.
    pub traceparent: String,
    /// Which message of the batch.
    pub message: usize,
    /// Which fact of the message.
    pub fact: usize,
}

/// What posting a batch did.
#[derive(Debug, Default)]
pub struct Posted {
    /// Entries that are there with other content, each with its index and what differs.
    pub conflicts: Vec<(usize, String)>,
    /// The accounts that the batch names: to be remembered after the commit.
    pub accounts: Known,
}

impl Store {
    /// Writes entries that are new, with their events.
    ///
    /// # Errors
    /// Postgres refused; the transaction has to be rolled back.
    pub async fn post(&self, tx: &mut Tx, entries: &[EntryOf]) -> Result<Posted, sqlx::Error> {
        if entries.is_empty() {
            return Ok(Posted::default());
        }
        // The same entry may come twice in one batch: compared like one that was there.
        let mut first: HashMap<JournalEntryId, usize> = HashMap::new();
        for (index, of) in entries.iter().enumerate() {
            first.entry(of.entry.entry_id).or_insert(index);
        }
        let mut candidates: Vec<&EntryOf> = first.values().map(|index| &entries[*index]).collect();
        // One order for all replicas, so that they cannot deadlock; and a capture comes before its fee, so that no prefix
        // of the journal is negative.
        candidates.sort_by_key(|of| (of.entry.operation_id, of.entry.kind.as_str()));
        let accounts = self.account_ids(tx, &candidates).await?;
        let written = insert_entries(tx, &candidates).await?;
        let new: Vec<&EntryOf> =
            candidates.iter().copied().filter(|of| written.contains_key(&of.entry.entry_id.uuid())).collect();
        insert_postings(tx, &new, &accounts).await?;
        let facts = new.iter().map(|of| {
            let (sequence, booked_at) = written[&of.entry.entry_id.uuid()];
            tracing::debug!(
                traceId = telemetry::trace_id(&of.traceparent), parentEventId = %of.entry.event_id,
                aggregateId = %of.entry.entry_id, paymentId = of.entry.payment_id.map(tracing::field::display),
                paymentOrderId = of.entry.payment_order_id.map(tracing::field::display),
                sellerId = of.entry.seller_id, kind = of.entry.kind.as_str(), "entry written"
            );
            let traceparent = telemetry::fact_span("journal entry", &of.traceparent, &of.entry.event_id.to_string());
            wire::recorded(&of.entry, sequence, booked_at, traceparent)
        });
        outbox::insert(tx, &envelope::pack::<EntriesRecorded>(facts.collect())).await?;
        metrics::counter!("florin_entries_total").increment(new.len() as u64);
        Ok(Posted { conflicts: self.compare(tx, entries, &written).await?, accounts })
    }

    /// Compares entries that were not written now with what the journal holds.
    async fn compare(
        &self,
        tx: &mut Tx,
        entries: &[EntryOf],
        written: &HashMap<Uuid, (i64, DateTime<Utc>)>,
    ) -> Result<Vec<(usize, String)>, sqlx::Error> {
        let repeated: Vec<usize> = {
            let mut seen = HashSet::new();
            let again = |(index, of): (usize, &EntryOf)| {
                let id = of.entry.entry_id.uuid();
                (!written.contains_key(&id) || !seen.insert(id)).then_some(index)
            };
            entries.iter().enumerate().filter_map(again).collect()
        };
        if repeated.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<Uuid> = repeated.iter().map(|index| entries[*index].entry.entry_id.uuid()).collect();
        let stored = super::read::contents(tx, &ids).await?;
        let differs = |index: usize| {
            let entry = &entries[index].entry;
            let found = stored.get(&entry.entry_id.uuid());
            let same = found.is_some_and(|found| found == &content(entry));
            if !same {
                tracing::error!(entryId = %entry.entry_id, eventId = %entry.event_id, "an entry is there with other content");
                metrics::counter!("florin_entry_conflicts_total").increment(1);
            }
            (!same).then(|| (index, format!("{} is in the journal with other content", entry.entry_id)))
        };
        Ok(repeated.into_iter().filter_map(differs).collect())
    }

    /// The ids of all accounts that the entries name; those that are new are made.
    async fn account_ids(&self, tx: &mut Tx, entries: &[&EntryOf]) -> Result<Known, sqlx::Error> {
        let named = entries.iter().flat_map(|of| {
            let merchant = &of.entry.merchant_id;
            of.entry.postings.iter().flat_map(move |posting| [(merchant, &posting.debit), (merchant, &posting.credit)])
        });
        let mut wanted: HashSet<(String, Account)> =
            named.map(|(merchant, account)| (merchant.clone(), account.clone())).collect();
        let mut ids = Known::new();
        {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            wanted.retain(|account| match known.get(account) {
                Some(id) => {
                    ids.insert(account.clone(), *id);
                    false
                }
                None => true,
            });
        }
        if wanted.is_empty() {
            return Ok(ids);
        }
        let wanted: Vec<(String, Account)> = wanted.into_iter().collect();
        let found = ensure_accounts(tx, &wanted).await?;
        ids.extend(found);
        Ok(ids)
    }

    /// Remembers accounts, once the transaction that may have made them is committed.
    pub fn remember(&self, accounts: Known) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < MAX_KNOWN {
            known.extend(accounts);
        }
    }
}

/// What identifies an entry's content: everything but the event that told it.
type Content = (String, Uuid, Vec<(String, String, i64)>);

fn content(entry: &Entry) -> Content {
    let posting = |posting: &Posting| (posting.debit.to_string(), posting.credit.to_string(), posting.amount);
    (entry.kind.as_str().to_owned(), entry.operation_id, entry.postings.iter().map(posting).collect())
}

async fn ensure_accounts(tx: &mut Tx, wanted: &[(String, Account)]) -> Result<Known, sqlx::Error> {
    let merchants: Vec<&str> = wanted.iter().map(|(merchant, _)| merchant.as_str()).collect();
    let types: Vec<&str> = wanted.iter().map(|(_, account)| account.account_type.as_str()).collect();
    let entities: Vec<&str> = wanted.iter().map(|(_, account)| account.entity.as_str()).collect();
    let currencies: Vec<&str> = wanted.iter().map(|(_, account)| account.currency.code()).collect();
    sqlx::query!(
        r#"
        insert into accounts (merchant_id, type, entity, currency)
        select merchant_id, type, entity, currency
        from unnest($1::text[], $2::text[], $3::text[], $4::text[]) as new (merchant_id, type, entity, currency)
        where not exists (select from accounts a where (a.merchant_id, a.type, a.entity, a.currency)
                                                     = (new.merchant_id, new.type, new.entity, new.currency))
        order by merchant_id, type, entity, currency
        on conflict do nothing
        "#,
        &merchants as _,
        &types as _,
        &entities as _,
        &currencies as _,
    )
    .execute(&mut **tx)
    .await?;
    // A second statement: the first one's snapshot would not show what its conflicts waited for.
    let rows = sqlx::query!(
        r#"
        select account_id, place as "place!"
        from unnest($1::text[], $2::text[], $3::text[], $4::text[]) with ordinality
             as new (merchant_id, type, entity, currency, place)
        join accounts a using (merchant_id, type, entity, currency)
        "#,
        &merchants as _,
        &types as _,
        &entities as _,
        &currencies as _,
    )
    .fetch_all(&mut **tx)
    .await?;
    let place = |place: i64| usize::try_from(place - 1).ok().and_then(|place| wanted.get(place)).cloned();
    Ok(rows.into_iter().filter_map(|row| Some((place(row.place)?, row.account_id))).collect())
}

/// Writes entries that are new; answers their places in the journal.
async fn insert_entries(tx: &mut Tx, entries: &[&EntryOf]) -> Result<HashMap<Uuid, (i64, DateTime<Utc>)>, sqlx::Error> {
    let ids: Vec<Uuid> = entries.iter().map(|of| of.entry.entry_id.uuid()).collect();
    let merchants: Vec<&str> = entries.iter().map(|of| of.entry.merchant_id.as_str()).collect();
    let kinds: Vec<&str> = entries.iter().map(|of| of.entry.kind.as_str()).collect();
    let operations: Vec<Uuid> = entries.iter().map(|of| of.entry.operation_id).collect();
    let payments: Vec<Option<Uuid>> =
        entries.iter().map(|of| of.entry.payment_id.map(florin::id::PaymentId::uuid)).collect();
    let orders: Vec<Option<Uuid>> =
        entries.iter().map(|of| of.entry.payment_order_id.map(florin::id::PaymentOrderId::uuid)).collect();
    let sellers: Vec<Option<&str>> = entries.iter().map(|of| of.entry.seller_id.as_deref()).collect();
    let events: Vec<Uuid> = entries.iter().map(|of| of.entry.event_id.uuid()).collect();
    let times: Vec<DateTime<Utc>> = entries.iter().map(|of| of.entry.effective_at).collect();
    let rows = sqlx::query!(
        r#"
        insert into journal_entries (entry_id, merchant_id, kind, operation_id, payment_id, payment_order_id, seller_id,
                                     event_id, effective_at)
        select entry_id, merchant_id, kind, operation_id, payment_id, payment_order_id, seller_id, event_id, effective_at
        from unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::uuid[], $6::uuid[], $7::text[], $8::uuid[],
                    $9::timestamptz[]) with ordinality
             as new (entry_id, merchant_id, kind, operation_id, payment_id, payment_order_id, seller_id, event_id,
                     effective_at, place)
        order by place
        on conflict (entry_id) do nothing
        returning entry_id, sequence, booked_at
        "#,
        &ids,
        &merchants as _,
        &kinds as _,
        &operations,
        &payments as _,
        &orders as _,
        &sellers as _,
        &events,
        &times,
    )
    .fetch_all(&mut **tx)
    .await?;
    Ok(rows.into_iter().map(|row| (row.entry_id, (row.sequence, row.booked_at))).collect())
}

async fn insert_postings(tx: &mut Tx, entries: &[&EntryOf], accounts: &Known) -> Result<(), sqlx::Error> {
    let rows: Vec<(Uuid, i16, &str, &Posting)> = entries
        .iter()
        .flat_map(|of| {
            (1_i16..)
                .zip(&of.entry.postings)
                .map(|(leg, posting)| (of.entry.entry_id.uuid(), leg, of.entry.merchant_id.as_str(), posting))
        })
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    let id = |merchant: &str, account: &Account| {
        accounts
            .get(&(merchant.to_owned(), account.clone()))
            .copied()
            .ok_or_else(|| sqlx::Error::Protocol(format!("account {account} was not made")))
    };
    let ids: Vec<Uuid> = rows.iter().map(|(entry, ..)| *entry).collect();
    let legs: Vec<i16> = rows.iter().map(|(_, leg, ..)| *leg).collect();
    let debits =
        rows.iter().map(|(_, _, merchant, posting)| id(merchant, &posting.debit)).collect::<Result<Vec<i64>, _>>()?;
    let credits =
        rows.iter().map(|(_, _, merchant, posting)| id(merchant, &posting.credit)).collect::<Result<Vec<i64>, _>>()?;
    let amounts: Vec<i64> = rows.iter().map(|(.., posting)| posting.amount).collect();
    let currencies: Vec<&str> = rows.iter().map(|(.., posting)| posting.debit.currency.code()).collect();
    sqlx::query!(
        r#"
        insert into postings (entry_id, leg, debit_account, credit_account, amount, currency)
        select * from unnest($1::uuid[], $2::smallint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[])
        "#,
        &ids,
        &legs,
        &debits,
        &credits,
        &amounts,
        &currencies as _,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
