//! The relay: publishes the outbox to JetStream, exactly in its order and never skipping a row.
//!
//! One process of a database leads, by a lease of 3 s in the cursor's row; every move of the cursor proves the lease's
//! epoch, so that a process that was paused wakes up harmless. Rows are read behind the snapshot horizon: a row is
//! only seen when no transaction that could still insert before it is open. Publishing is pipelined, and the cursor
//! moves over the contiguous prefix that JetStream acknowledged. No advisory locks: they hang with a stopped process
//! and do not pass a connection pooler.

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use sqlx::PgPool;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::dead_letter::{self, Burial};
use crate::envelope::{Incoming, Parked, Selection, header};
use crate::id::EventId;
use crate::pg;
use crate::stream::{Broker, stream_name, subject};

/// Messages published in one go.
const BATCH: i64 = 512;
/// The lease of 3 s is renewed when it is this old.
const RENEW_AFTER: Duration = Duration::from_secs(1);
/// Between two looks when nothing wakes the relay: other replicas' commits show here.
const IDLE: Duration = Duration::from_millis(100);
/// Between two looks while a row waits behind the snapshot horizon.
const BEHIND_HORIZON: Duration = Duration::from_millis(2);
/// How long rows may wait behind the horizon before that is alarmed.
const HORIZON_ALARM: Duration = Duration::from_secs(1);
/// After trouble.
const AFTER_TROUBLE: Duration = Duration::from_millis(250);
/// Name of the relay among the consumers of dead letters.
pub const CONSUMER: &str = "relay";

/// Wakes the relay after a commit in the same process.
#[derive(Debug, Clone, Default)]
pub struct Waker(Arc<Notify>);

impl Waker {
    /// There may be something to publish.
    pub fn wake(&self) {
        self.0.notify_one();
    }
}

/// The relay of one service's database.
#[derive(Debug)]
pub struct Relay {
    publisher: &'static str,
    holder: String,
    pool: PgPool,
    broker: Broker,
    waker: Waker,
    /// The cursor under our lease, and when the lease was last renewed.
    lease: Option<(Cursor, Instant)>,
    /// Since when rows wait behind the horizon, without a pause.
    behind_since: Option<Instant>,
}

/// Where the cursor stands and under which lease.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    epoch: i64,
    era: i32,
    xid: i64,
    seq: i64,
}

/// A row of the outbox.
#[derive(Debug)]
struct Row {
    era: i32,
    xid: i64,
    seq: i64,
    created_at: DateTime<Utc>,
    event_id: Uuid,
    message_type: String,
    partition: i16,
    key: String,
    causation_id: Option<Uuid>,
    traceparent: String,
    payload: Vec<u8>,
    /// Whether no open transaction can insert before it.
    settled: bool,
}

/// What a look at the outbox found.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// A batch was published; there may be more.
    Published,
    /// There are rows, all of them behind the horizon.
    BehindHorizon,
    /// Nothing to publish.
    Empty,
    /// Another process leads.
    Following,
}

/// Trouble that the relay waits out.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("postgres: {0}")]
    Postgres(#[from] sqlx::Error),
    #[error("nats: {0}")]
    Nats(String),
    #[error("another process took the lead")]
    Deposed,
}

impl Relay {
    /// The relay of this publisher's outbox.
    #[must_use]
    pub fn new(publisher: &'static str, pool: PgPool, broker: Broker, waker: Waker) -> Self {
        let holder = format!("{publisher}-{}-{}", std::process::id(), Uuid::now_v7());
        Self { publisher, holder, pool, broker, waker, lease: None, behind_since: None }
    }

    /// Publishes until `stop`, then publishes what is left and gives the lease back.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut troubled = false;
        loop {
            let stopping = stop.is_cancelled();
            let pause = match self.look().await {
                Ok(look) => {
                    troubled = false;
                    self.watch_horizon(&look);
                    match look {
                        Look::Published => continue,
                        Look::BehindHorizon => BEHIND_HORIZON,
                        Look::Empty | Look::Following if stopping => break,
                        Look::Empty | Look::Following => IDLE,
                    }
                }
                Err(trouble) => {
                    if stopping {
                        break;
                    }
                    if !troubled {
                        tracing::warn!(%trouble, "the relay waits");
                    }
                    troubled = true;
                    self.lease = None;
                    self.mend(&trouble).await;
                    AFTER_TROUBLE
                }
            };
            tokio::select! {
                () = stop.cancelled(), if !stopping => {}
                () = self.waker.0.notified(), if pause == IDLE => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        if let Err(error) = self.give_back().await {
            tracing::debug!(%error, "the lease runs out by itself");
        }
    }

    /// A transaction that stays open holds every row behind it back, wherever in the cluster it writes.
    fn watch_horizon(&mut self, look: &Look) {
        if *look != Look::BehindHorizon {
            self.behind_since = None;
            metrics::gauge!("florin_outbox_horizon_seconds").set(0.0);
            return;
        }
        let now = Instant::now();
        let since = *self.behind_since.get_or_insert(now);
        metrics::gauge!("florin_outbox_horizon_seconds").set((now - since).as_secs_f64());
        if now - since >= HORIZON_ALARM {
            tracing::warn!(seconds = (now - since).as_secs(), "an open transaction holds the outbox back");
            // Once a second is loud enough.
            self.behind_since = Some(now);
        }
    }

    /// A stream that is gone is made again; what it held is sent again by the reconciler.
    async fn mend(&self, trouble: &Trouble) {
        if let Trouble::Nats(_) = trouble
            && let Err(error) = self.broker.ensure_stream(self.publisher).await
        {
            tracing::debug!(error, "the stream could not be made");
        }
    }

    async fn look(&mut self) -> Result<Look, Trouble> {
        let cursor = match self.lease {
            Some((cursor, renewed)) if renewed.elapsed() < RENEW_AFTER => cursor,
            _ => match self.lead().await? {
                Some(cursor) => cursor,
                None => return Ok(Look::Following),
            },
        };
        let rows = self.read(cursor).await?;
        let unsettled = rows.iter().any(|row| !row.settled);
        let settled: Vec<Row> = rows.into_iter().take_while(|row| row.settled).collect();
        if settled.is_empty() {
            return Ok(if unsettled { Look::BehindHorizon } else { Look::Empty });
        }
        self.publish(cursor, settled).await?;
        Ok(Look::Published)
    }

    /// Takes or renews the lease; `None` while another process holds it.
    async fn lead(&mut self) -> Result<Option<Cursor>, sqlx::Error> {
        let asked = Instant::now();
        let cursor = sqlx::query_as!(
            Cursor,
            r#"
            update outbox_cursor
            set epoch = case when holder = $1 and until > clock_timestamp() then epoch else epoch + 1 end,
                holder = $1, until = clock_timestamp() + interval '3 seconds'
            where holder = $1 or until < clock_timestamp()
            returning epoch, era, xid::text::bigint as "xid!", seq
            "#,
            self.holder,
        )
        .fetch_optional(&self.pool)
        .await?;
        self.lease = cursor.map(|cursor| (cursor, asked));
        Ok(cursor)
    }

    async fn read(&self, cursor: Cursor) -> Result<Vec<Row>, sqlx::Error> {
        sqlx::query_as!(
            Row,
            r#"
            select era, xid::text::bigint as "xid!", seq, created_at, event_id, message_type, partition, key,
                   causation_id, traceparent, payload,
                   xid < pg_snapshot_xmin(pg_current_snapshot()) as "settled!"
            from outbox
            where (era, xid, seq) > ($1::integer, $2::bigint::text::xid8, $3::bigint)
            order by era, xid, seq limit $4
            "#,
            cursor.era,
            cursor.xid,
            cursor.seq,
            BATCH,
        )
        .fetch_all(&self.pool)
        .await
    }

    /// Publishes rows and moves the cursor over the acknowledged prefix.
    async fn publish(&mut self, cursor: Cursor, rows: Vec<Row>) -> Result<(), Trouble> {
        let mut acknowledgements = FuturesOrdered::new();
        for row in &rows {
            let sent = match self.message(row) {
                Ok(message) => self.broker.js().send_publish(self.subject(row), message).await.map_err(Refusal::from),
                Err(unfit) => Err(Refusal::ForGood(unfit)),
            };
            acknowledgements.push_back(async move { Ok::<_, Refusal>(sent?.await.map(|_| ())?) });
        }
        let mut done = None;
        let mut trouble = None;
        for row in &rows {
            match acknowledgements.next().await {
                Some(Ok(())) => {}
                Some(Err(Refusal::ForGood(reason))) => self.bury(row, reason).await?,
                Some(Err(Refusal::ForNow(reason))) => {
                    trouble = Some(Trouble::Nats(reason));
                    break;
                }
                None => break,
            }
            done = Some(row);
        }
        if let Some(last) = done {
            self.advance(cursor, last).await?;
            let lag = last.created_at.signed_duration_since(rows[0].created_at);
            tracing::debug!(rows = rows.len(), spread = lag.num_milliseconds(), "published");
        }
        metrics::counter!("florin_outbox_published_total").increment(rows.len() as u64);
        trouble.map_or(Ok(()), Err)
    }

    fn subject(&self, row: &Row) -> String {
        subject(self.publisher, &row.message_type, u16::try_from(row.partition).unwrap_or_default())
    }

    /// The row as a message; an error where a header cannot carry what the row holds.
    fn message(&self, row: &Row) -> Result<PublishMessage, String> {
        let event_id = EventId::from_uuid(row.event_id).to_string();
        let mut headers = HeaderMap::new();
        let mut put = |name: &'static str, text: &str| {
            let value = HeaderValue::from_str(text).map_err(|error| format!("{name}: {error}"))?;
            headers.insert(name, value);
            Ok::<_, String>(())
        };
        put(header::SPEC_VERSION, "1.0")?;
        put(header::ID, &event_id)?;
        put(header::TYPE, &row.message_type)?;
        put(header::SOURCE, self.publisher)?;
        put(header::SUBJECT, &row.key)?;
        put(header::TIME, &row.created_at.to_rfc3339_opts(SecondsFormat::Micros, true))?;
        if let Some(cause) = row.causation_id {
            put(header::CAUSATION_ID, &EventId::from_uuid(cause).to_string())?;
        }
        if !row.traceparent.is_empty() {
            put(header::TRACEPARENT, &row.traceparent)?;
        }
        Ok(PublishMessage::build()
            .headers(headers)
            .payload(Bytes::copy_from_slice(&row.payload))
            .message_id(event_id)
            .expected_stream(stream_name(self.publisher)))
    }

    /// Moves the cursor, without waiting for the disk: a move that a crash loses only publishes again what the inbox
    /// knows. The lease itself is taken durably.
    async fn advance(&mut self, cursor: Cursor, last: &Row) -> Result<(), Trouble> {
        let asked = Instant::now();
        let moved = sqlx::query!(
            r#"
            update outbox_cursor
            set era = $3, xid = $4::bigint::text::xid8, seq = $5, until = clock_timestamp() + interval '3 seconds'
            from (select set_config('synchronous_commit', 'off', true)) as not_waiting
            where holder = $1 and epoch = $2
            "#,
            self.holder,
            cursor.epoch,
            last.era,
            last.xid,
            last.seq,
        );
        match moved.execute(&self.pool).await?.rows_affected() {
            1 => {
                let moved = Cursor { epoch: cursor.epoch, era: last.era, xid: last.xid, seq: last.seq };
                self.lease = Some((moved, asked));
                Ok(())
            }
            _ => Err(Trouble::Deposed),
        }
    }

    /// A message that the broker refuses for good counts as published; an operator decides about it.
    async fn bury(&self, row: &Row, reason: String) -> Result<(), sqlx::Error> {
        let message = Incoming {
            event_id: EventId::from_uuid(row.event_id),
            message_type: row.message_type.clone(),
            subject: self.subject(row),
            // What a replay needs to write the row again.
            headers: vec![
                (header::SUBJECT.to_owned(), row.key.clone()),
                (header::TRACEPARENT.to_owned(), row.traceparent.clone()),
            ],
            payload: Bytes::copy_from_slice(&row.payload),
            delivery_count: 1,
            selection: Selection::All,
        };
        metrics::counter!("florin_outbox_failed_total").increment(1);
        let parked = Parked::message("REFUSED_BY_BROKER", reason);
        let burial = Burial { source: message.event_id.to_string(), message: &message, has_event_id: true, parked };
        let mut tx = pg::begin(&self.pool).await?;
        dead_letter::insert(&mut tx, CONSUMER, &[burial]).await?;
        tx.commit().await
    }

    async fn give_back(&self) -> Result<(), sqlx::Error> {
        sqlx::query!("update outbox_cursor set until = '-infinity' where holder = $1", self.holder)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

/// Why a message was not published.
enum Refusal {
    /// Trying again can never help.
    ForGood(String),
    /// Everything else is tried for ever.
    ForNow(String),
}

impl From<PublishError> for Refusal {
    fn from(error: PublishError) -> Self {
        match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => Self::ForGood(error.to_string()),
            _ => Self::ForNow(error.to_string()),
        }
    }
}

/// How far the relay is.
#[derive(Debug, Clone)]
pub struct Status {
    /// Messages not yet published.
    pub backlog: i64,
    /// When the oldest of them was written.
    pub oldest: Option<DateTime<Utc>>,
    /// How many seconds ago that was; 0 when there are none.
    pub oldest_seconds: f64,
    /// Which process leads.
    pub leader: String,
    /// Counts up with each change of leader.
    pub epoch: i64,
}

/// Reads how far the relay is.
///
/// # Errors
/// Postgres does not answer.
pub async fn status(pool: &PgPool) -> Result<Status, sqlx::Error> {
    sqlx::query_as!(
        Status,
        r#"
        select cursor.holder as leader, cursor.epoch, behind.backlog as "backlog!", behind.oldest as "oldest?",
               coalesce(extract(epoch from clock_timestamp() - behind.oldest), 0)::float8 as "oldest_seconds!"
        from outbox_cursor cursor cross join lateral (
            select count(*) as backlog, min(created_at) as oldest from outbox
            where (era, xid, seq) > (cursor.era, cursor.xid, cursor.seq)
        ) behind
        "#
    )
    .fetch_one(pool)
    .await
}
