//! Dead letters: messages, or single facts of them, that could not be applied. They keep everything that a replay
//! needs.

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use crate::envelope::{Incoming, Parked, Selection};
use crate::id::EventId;
use crate::pg::Tx;

/// A dead letter as the database holds it.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// Its id.
    pub dead_letter_id: Uuid,
    /// The consumer that set it aside.
    pub consumer: String,
    /// Index of the fact; -1 for the message as a whole.
    pub fact_index: i32,
    /// The message's id; `None` where none could be read.
    pub event_id: Option<Uuid>,
    /// Full name of the message.
    pub message_type: String,
    /// Subject that it came on.
    pub subject: String,
    /// Stable class of the reason.
    pub reason: String,
    /// What went wrong.
    pub detail: String,
    /// Headers as received.
    pub headers: serde_json::Value,
    /// Body as received.
    pub payload: Vec<u8>,
    /// How often it had been delivered.
    pub delivery_count: i64,
    /// OPEN or REPLAYED.
    pub state: String,
    /// When it was set aside.
    pub created_at: DateTime<Utc>,
    /// When it was replayed.
    pub replayed_at: Option<DateTime<Utc>>,
}

impl DeadLetter {
    /// The message again, for the handler that set it aside.
    #[must_use]
    pub fn incoming(&self) -> Option<Incoming> {
        let headers: Vec<(String, String)> = serde_json::from_value(self.headers.clone()).ok()?;
        Some(Incoming {
            event_id: EventId::from_uuid(self.event_id?),
            message_type: self.message_type.clone(),
            subject: self.subject.clone(),
            headers,
            payload: self.payload.clone().into(),
            delivery_count: self.delivery_count,
            selection: usize::try_from(self.fact_index).map_or(Selection::All, Selection::Only),
        })
    }
}

/// A message that is set aside, with the reason.
#[derive(Debug)]
pub struct Burial<'a> {
    /// What identifies the message for this consumer: its event id, or where it stood in the stream.
    pub source: String,
    /// The message.
    pub message: &'a Incoming,
    /// Whether the event id could be read.
    pub has_event_id: bool,
    /// Why.
    pub parked: Parked,
}

/// Sets messages aside, each once.
///
/// # Errors
/// Postgres does not answer.
pub async fn insert(tx: &mut Tx, consumer: &str, burials: &[Burial<'_>]) -> Result<(), sqlx::Error> {
    for Burial { source, message, has_event_id, parked } in burials {
        tracing::error!(
            consumer, eventId = %message.event_id, reason = parked.reason, detail = parked.detail,
            factIndex = parked.fact_index, "set aside as a dead letter"
        );
        metrics::counter!("florin_dead_letters_total", "consumer" => consumer.to_owned(), "reason" => parked.reason)
            .increment(1);
        let fact_index = parked.fact_index.map_or(-1, |index| i32::try_from(index).unwrap_or(i32::MAX));
        let headers = serde_json::to_value(&message.headers).unwrap_or_default();
        sqlx::query!(
            r#"
            insert into dead_letters (dead_letter_id, consumer, source, fact_index, event_id, message_type, subject,
                                      reason, detail, headers, payload, delivery_count)
            values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
            -- One that was replayed and could not be applied again is open again.
            on conflict (consumer, source, fact_index) do update
                set state = 'OPEN', replayed_at = null, reason = excluded.reason, detail = excluded.detail
                where dead_letters.state = 'REPLAYED'
            "#,
            Uuid::now_v7(),
            consumer,
            source,
            fact_index,
            has_event_id.then(|| message.uuid()),
            message.message_type,
            message.subject,
            parked.reason,
            parked.detail,
            headers,
            message.payload.as_ref(),
            message.delivery_count,
        )
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

/// Dead letters before `before`, newest first.
///
/// # Errors
/// Postgres does not answer.
pub async fn list(pool: &PgPool, all: bool, before: Option<Uuid>, limit: i64) -> Result<Vec<DeadLetter>, sqlx::Error> {
    sqlx::query_as!(
        DeadLetter,
        r#"
        select dead_letter_id, consumer, fact_index, event_id, message_type, subject, reason, detail, headers,
               ''::bytea as "payload!", delivery_count, state, created_at, replayed_at
        from dead_letters
        where (state = 'OPEN' or $1) and ($2::uuid is null or dead_letter_id < $2)
        order by dead_letter_id desc limit $3
        "#,
        all,
        before,
        limit,
    )
    .fetch_all(pool)
    .await
}

/// One dead letter with its payload.
///
/// # Errors
/// Postgres does not answer.
pub async fn get(pool: &PgPool, id: Uuid) -> Result<Option<DeadLetter>, sqlx::Error> {
    sqlx::query_as!(
        DeadLetter,
        r#"
        select dead_letter_id, consumer, fact_index, event_id, message_type, subject, reason, detail, headers, payload,
               delivery_count, state, created_at, replayed_at
        from dead_letters where dead_letter_id = $1
        "#,
        id,
    )
    .fetch_optional(pool)
    .await
}

/// Marks an open one as replayed, in the transaction that applies it. `false`: somebody else did.
///
/// # Errors
/// Postgres does not answer.
pub async fn close(tx: &mut Tx, id: Uuid) -> Result<bool, sqlx::Error> {
    let closed = sqlx::query!(
        r#"
        update dead_letters set state = 'REPLAYED', replayed_at = clock_timestamp()
        where dead_letter_id = $1 and state = 'OPEN'
        "#,
        id,
    );
    Ok(closed.execute(&mut **tx).await?.rows_affected() == 1)
}

/// How many wait for an operator.
///
/// # Errors
/// Postgres does not answer.
pub async fn count_open(pool: &PgPool) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(r#"select count(*) as "count!" from dead_letters where state = 'OPEN'"#).fetch_one(pool).await
}
