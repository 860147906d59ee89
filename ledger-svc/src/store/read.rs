//! Reading the journal, within one merchant.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use florin::account::Account;
use florin::error::Error;
use florin::id::{EventId, JournalEntryId, PaymentId, PaymentOrderId};
use florin::ops::read_failed;
use florin::pg::{self, Tx};
use uuid::Uuid;

use super::Store;
use crate::posting::{Entry, Kind, Posting};

/// An entry with its place in the journal.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The entry.
    pub entry: Entry,
    /// Position in the journal.
    pub sequence: i64,
    /// When it was written.
    pub booked_at: DateTime<Utc>,
}

/// Which entries to list. What is not set does not filter; no kinds means any.
#[derive(Debug, Clone, Default)]
pub struct EntryFilter {
    /// This entry only.
    pub entry_id: Option<JournalEntryId>,
    /// Of this payment.
    pub payment_id: Option<PaymentId>,
    /// Of this payment order.
    pub payment_order_id: Option<PaymentOrderId>,
    /// Of these kinds.
    pub kinds: Vec<String>,
    /// Happened at or after.
    pub from: Option<DateTime<Utc>>,
    /// Happened before.
    pub to: Option<DateTime<Utc>>,
}

/// A line of an account's statement.
#[derive(Debug, Clone)]
pub struct Line {
    /// The entry.
    pub entry_id: Uuid,
    /// Its kind.
    pub kind: String,
    /// The leg.
    pub leg: i16,
    /// Type of the account on the other side.
    pub counter_type: String,
    /// Entity of the account on the other side.
    pub counter_entity: String,
    /// Minor units debited.
    pub debit: i64,
    /// Minor units credited.
    pub credit: i64,
    /// Sum of debits less credits up to and with this line.
    pub running: i64,
    /// The payment order.
    pub payment_order_id: Option<Uuid>,
    /// When it happened.
    pub effective_at: DateTime<Utc>,
    /// When it was written.
    pub booked_at: DateTime<Utc>,
    /// Position of the posting.
    pub sequence: i64,
    /// Position of the entry.
    pub entry_sequence: i64,
}

/// The totals of an account type in a currency.
#[derive(Debug, Clone)]
pub struct Total {
    /// The account type.
    pub account_type: String,
    /// The currency.
    pub currency: String,
    /// Sum of debits.
    pub debits: i64,
    /// Sum of credits.
    pub credits: i64,
}

struct EntryRow {
    entry_id: Uuid,
    sequence: i64,
    merchant_id: String,
    kind: String,
    operation_id: Uuid,
    payment_id: Option<Uuid>,
    payment_order_id: Option<Uuid>,
    seller_id: Option<String>,
    event_id: Uuid,
    effective_at: DateTime<Utc>,
    booked_at: DateTime<Utc>,
}

struct PostingRow {
    entry_id: Uuid,
    amount: i64,
    currency: String,
    debit_type: String,
    debit_entity: String,
    credit_type: String,
    credit_entity: String,
}

impl PostingRow {
    fn posting(self) -> Result<Posting, sqlx::Error> {
        let currency = self.currency.parse().map_err(pg::undecodable)?;
        let account = |account_type: &str, entity: String| {
            Ok::<_, sqlx::Error>(Account::new(account_type.parse().map_err(pg::undecodable)?, entity, currency))
        };
        Ok(Posting {
            debit: account(&self.debit_type, self.debit_entity)?,
            credit: account(&self.credit_type, self.credit_entity)?,
            amount: self.amount,
        })
    }
}

impl EntryRow {
    fn stored(self, postings: Vec<Posting>) -> Result<Stored, sqlx::Error> {
        let kind: Kind = self.kind.parse().map_err(pg::undecodable)?;
        Ok(Stored {
            sequence: self.sequence,
            booked_at: self.booked_at,
            entry: Entry {
                entry_id: JournalEntryId::from_uuid(self.entry_id),
                merchant_id: self.merchant_id,
                kind,
                operation_id: self.operation_id,
                payment_id: self.payment_id.map(PaymentId::from_uuid),
                payment_order_id: self.payment_order_id.map(PaymentOrderId::from_uuid),
                seller_id: self.seller_id,
                event_id: EventId::from_uuid(self.event_id),
                effective_at: self.effective_at,
                postings,
            },
        })
    }
}

impl Store {
    /// Entries of this merchant before a position, newest first.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn entries(
        &self,
        merchant: &str,
        filter: &EntryFilter,
        before: Option<i64>,
        limit: i64,
    ) -> Result<Vec<Stored>, Error> {
        let rows = sqlx::query_as!(
            EntryRow,
            r#"
            select entry_id, sequence, merchant_id, kind, operation_id, payment_id, payment_order_id, seller_id, event_id,
                   effective_at, booked_at
            from journal_entries
            where merchant_id = $1
              and ($2::bigint is null or sequence < $2)
              and ($3::uuid is null or entry_id = $3)
              and ($4::uuid is null or payment_id = $4)
              and ($5::uuid is null or payment_order_id = $5)
              and (cardinality($6::text[]) = 0 or kind = any($6))
              and ($7::timestamptz is null or effective_at >= $7)
              and ($8::timestamptz is null or effective_at < $8)
            order by sequence desc limit $9
            "#,
            merchant,
            before,
            filter.entry_id.map(JournalEntryId::uuid),
            filter.payment_id.map(PaymentId::uuid),
            filter.payment_order_id.map(PaymentOrderId::uuid),
            &filter.kinds,
            filter.from,
            filter.to,
            limit,
        );
        let rows = rows.fetch_all(&self.pool).await.map_err(read_failed)?;
        let ids: Vec<Uuid> = rows.iter().map(|row| row.entry_id).collect();
        let mut connection = self.pool.acquire().await.map_err(read_failed)?;
        let mut postings = postings(&mut connection, &ids).await.map_err(read_failed)?;
        let stored = rows.into_iter().map(|row| {
            let legs = postings.remove(&row.entry_id).unwrap_or_default();
            row.stored(legs)
        });
        stored.collect::<Result<_, _>>().map_err(read_failed)
    }

    /// Lines of an account's statement before a position, newest first, each with the balance after it.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn statement(
        &self,
        merchant: &str,
        account: &Account,
        before: Option<i64>,
        limit: i64,
    ) -> Result<Vec<Line>, Error> {
        // One pass over the account's lines: the running sum of a page needs all that came before it.
        sqlx::query_as!(
            Line,
            r#"
            with mine as (
                select account_id from accounts
                where merchant_id = $1 and type = $2 and entity = $3 and currency = $4
            ), line as (
                select sequence, entry_id, leg, credit_account as counter, amount as debit, 0::bigint as credit
                from postings where debit_account = (select account_id from mine)
                union all
                select sequence, entry_id, leg, debit_account, 0::bigint, amount
                from postings where credit_account = (select account_id from mine)
            ), summed as (
                select *, (sum(debit - credit) over (order by sequence))::bigint as running from line
            )
            select s.entry_id as "entry_id!", e.kind, s.leg as "leg!", c.type as counter_type, c.entity as counter_entity,
                   s.debit as "debit!", s.credit as "credit!", s.running as "running!", e.payment_order_id,
                   e.effective_at, e.booked_at, s.sequence as "sequence!", e.sequence as entry_sequence
            from summed s join journal_entries e using (entry_id) join accounts c on c.account_id = s.counter
            where $5::bigint is null or s.sequence < $5
            order by s.sequence desc limit $6
            "#,
            merchant,
            account.account_type.as_str(),
            account.entity,
            account.currency.code(),
            before,
            limit,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(read_failed)
    }

    /// Totals per account type and currency, from one snapshot.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn totals(&self, merchant: &str) -> Result<Vec<Total>, Error> {
        sqlx::query_as!(
            Total,
            r#"
            select a.type as account_type, a.currency,
                   coalesce(sum(amount) filter (where side = 'DEBIT'), 0)::bigint as "debits!",
                   coalesce(sum(amount) filter (where side = 'CREDIT'), 0)::bigint as "credits!"
            from journal_lines join accounts a using (account_id)
            where a.merchant_id = $1
            group by a.type, a.currency order by a.currency, a.type
            "#,
            merchant,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(read_failed)
    }

    /// Which of these events made no entry.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn missing_events(&self, events: &[Uuid]) -> Result<Vec<Uuid>, sqlx::Error> {
        sqlx::query_scalar!(
            r#"
            select event_id as "event_id!" from unnest($1::uuid[]) as event (event_id)
            where not exists (select from journal_entries e where e.event_id = event.event_id)
            "#,
            events,
        )
        .fetch_all(&self.pool)
        .await
    }
}

async fn postings(
    connection: &mut sqlx::PgConnection,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, Vec<Posting>>, sqlx::Error> {
    let rows = sqlx::query_as!(
        PostingRow,
        r#"
        select p.entry_id, p.amount, p.currency, d.type as debit_type, d.entity as debit_entity,
               c.type as credit_type, c.entity as credit_entity
        from postings p join accounts d on d.account_id = p.debit_account join accounts c on c.account_id = p.credit_account
        where p.entry_id = any($1) order by p.entry_id, p.leg
        "#,
        ids,
    );
    let mut of: HashMap<Uuid, Vec<Posting>> = HashMap::new();
    for row in rows.fetch_all(connection).await? {
        of.entry(row.entry_id).or_default().push(row.posting()?);
    }
    Ok(of)
}

/// Kind, operation and postings of entries: what has to be the same for ever.
pub(super) async fn contents(
    tx: &mut Tx,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, (String, Uuid, Vec<(String, String, i64)>)>, sqlx::Error> {
    let mut legs = postings(tx, ids).await?;
    let rows = sqlx::query!("select entry_id, kind, operation_id from journal_entries where entry_id = any($1)", ids)
        .fetch_all(&mut **tx)
        .await?;
    let content = rows.into_iter().map(|row| {
        let postings = legs.remove(&row.entry_id).unwrap_or_default();
        let postings =
            postings.iter().map(|posting| (posting.debit.to_string(), posting.credit.to_string(), posting.amount));
        (row.entry_id, (row.kind, row.operation_id, postings.collect()))
    });
    Ok(content.collect())
}
