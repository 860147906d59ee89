//! The inbox consumer: pulls a batch, applies it in one transaction with its inbox rows, and acknowledges after the
//! commit.
//!
//! A batch with a wrong item is applied message by message; a message with a wrong fact is applied without that fact,
//! which goes to the dead letters in the same transaction as the inbox row. What fails for other reasons is delivered
//! again, later and later. Nothing is dropped by a count.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use futures::StreamExt as _;
use rand::SeedableRng as _;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::backoff::Backoff;
use crate::dead_letter::{self, Burial};
use crate::envelope::{Incoming, Parked, Selection, header};
use crate::id::EventId;
use crate::inbox::{self, Range};
use crate::pg::{self, Class, Tx};
use crate::stream::{ACK_WAIT, Broker, ConsumerSpec};

/// How long to wait before what failed is delivered again.
const REDELIVERY: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(30) };
/// Before the subscription is made again after trouble.
const AFTER_TROUBLE: Duration = Duration::from_millis(500);
/// How often a batch is tried again when two transactions met.
const CONFLICT_RETRIES: u32 = 10;

/// What a handler did with a batch.
#[derive(Default)]
pub struct Applied {
    /// Facts or messages to set aside, each with the index of its message in the batch.
    pub parked: Vec<(usize, Parked)>,
    /// What to do after the commit: wake watchers, refresh a cache.
    pub after: Option<Box<dyn FnOnce() + Send>>,
}

impl std::fmt::Debug for Applied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Applied").field("parked", &self.parked).finish_non_exhaustive()
    }
}

/// Applies messages. One for each consumer.
#[tonic::async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Applies new messages in the transaction that holds their inbox rows.
    async fn apply(&self, tx: &mut Tx, messages: &[Incoming]) -> Result<Applied, sqlx::Error>;

    /// Which of these events the consumer has not applied. From the inbox, unless the effects themselves tell.
    async fn missing(&self, pool: &PgPool, consumer: &str, events: &[Uuid]) -> Result<Vec<Uuid>, sqlx::Error> {
        inbox::missing(pool, consumer, events).await
    }
}

/// A consumer of one service.
#[derive(Clone)]
pub struct Consumer {
    /// What it reads.
    pub spec: ConsumerSpec,
    /// What it does.
    pub handler: Arc<dyn Handler>,
    /// The service's database.
    pub pool: PgPool,
    /// The connection to NATS.
    pub broker: Broker,
    /// Wakes the relay after a commit.
    pub relay: crate::relay::Waker,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer").field("spec", &self.spec).finish_non_exhaustive()
    }
}

/// A message with what acknowledges it and what identifies it.
struct Delivery {
    message: Message,
    incoming: Incoming,
    source: String,
    has_event_id: bool,
}

/// Why a batch was not applied.
#[derive(Debug, Clone, thiserror::Error)]
enum Trouble {
    /// An item is wrong.
    #[error("{0}")]
    Data(String),
    /// Try again later.
    #[error("{0}")]
    Later(String),
}

impl From<sqlx::Error> for Trouble {
    fn from(error: sqlx::Error) -> Self {
        match pg::class(&error) {
            Class::Data => Self::Data(error.to_string()),
            Class::Conflict | Class::LockTimeout | Class::Down | Class::Other => Self::Later(error.to_string()),
        }
    }
}

impl Consumer {
    /// Consumes until `stop`, and finishes the batch under way.
    pub async fn run(self, stop: CancellationToken) {
        let mut troubled = false;
        while !stop.is_cancelled() {
            let outcome = self.subscribe_and_consume(&stop, &mut troubled).await;
            if let Err(error) = outcome {
                if troubled {
                    tracing::debug!(consumer = self.spec.name, error, "the consumer waits");
                } else {
                    tracing::warn!(consumer = self.spec.name, error, "the consumer waits");
                    troubled = true;
                }
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(AFTER_TROUBLE) => {}
                }
            }
        }
    }

    async fn subscribe_and_consume(&self, stop: &CancellationToken, troubled: &mut bool) -> Result<(), String> {
        let consumer = self.broker.ensure_consumer(&self.spec).await?;
        let incarnation = consumer.cached_info().created.to_string();
        // Short pulls with a heartbeat: after a loss of the connection or the stream, a long pull would sleep it out.
        let messages = consumer
            .stream()
            .max_messages_per_batch(self.spec.max_batch)
            .expires(Duration::from_secs(5))
            .heartbeat(Duration::from_secs(1))
            .messages()
            .await
            .map_err(|error| error.to_string())?;
        let mut range = Range::read(&self.pool).await.map_err(|error| error.to_string())?;
        let mut range_read = tokio::time::Instant::now();
        let mut batches = std::pin::pin!(messages.ready_chunks(self.spec.max_batch));
        loop {
            let batch = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                batch = batches.next() => batch.ok_or("the subscription ended")?,
            };
            if range_read.elapsed() > Duration::from_secs(600) {
                range = Range::read(&self.pool).await.map_err(|error| error.to_string())?;
                range_read = tokio::time::Instant::now();
            }
            let mut deliveries = Vec::with_capacity(batch.len());
            let mut broken = None;
            for message in batch {
                match message {
                    Ok(message) => deliveries.push(Delivery::read(message, &incarnation)),
                    Err(error) => broken = Some(error.to_string()),
                }
            }
            if !deliveries.is_empty() {
                *troubled = false;
                self.consume(deliveries, range).await;
            }
            if let Some(error) = broken {
                return Err(error);
            }
        }
    }

    /// Applies a batch, says that it is in progress while that takes long, and acknowledges or hands back.
    async fn consume(&self, deliveries: Vec<Delivery>, range: Range) {
        let deliveries = Arc::new(deliveries);
        let consumer = self.clone();
        let batch = Arc::clone(&deliveries);
        // A task of its own: a stop or a panic never leaves a transaction half way.
        let mut work = tokio::spawn(async move { consumer.settle(&batch, range).await });
        let mut tick = tokio::time::interval(ACK_WAIT / 3);
        tick.tick().await;
        let results = loop {
            tokio::select! {
                results = &mut work => break results,
                _ = tick.tick() => acknowledge(&deliveries, |_| AckKind::Progress).await,
            }
        };
        let results = results.unwrap_or_else(|panic| vec![Err(Trouble::Later(panic.to_string())); deliveries.len()]);
        let count = deliveries.len() as u64;
        metrics::counter!("florin_messages_total", "consumer" => self.spec.name).increment(count);
        for (delivery, result) in deliveries.iter().zip(&results) {
            let kind = match result {
                Ok(()) => AckKind::Ack,
                Err(trouble) => {
                    tracing::warn!(consumer = self.spec.name, eventId = %delivery.incoming.event_id, %trouble, "handed back");
                    metrics::counter!("florin_messages_handed_back_total", "consumer" => self.spec.name).increment(1);
                    let tries = u32::try_from(delivery.incoming.delivery_count).unwrap_or(1);
                    AckKind::Nak(Some(REDELIVERY.delay(tries, &mut rand::rngs::SmallRng::from_os_rng())))
                }
            };
            if let Err(error) = delivery.message.ack_with(kind).await {
                tracing::debug!(error, "not acknowledged; the inbox will know it");
            }
        }
    }

    /// Applies a batch as a whole, else message by message, else fact by fact. One result for each message.
    async fn settle(&self, batch: &[Delivery], range: Range) -> Vec<Result<(), Trouble>> {
        let all: Vec<&Delivery> = batch.iter().collect();
        match self.attempt(&all, range, &HashMap::new()).await {
            Ok(()) => return vec![Ok(()); batch.len()],
            Err(Trouble::Later(reason)) => return vec![Err(Trouble::Later(reason)); batch.len()],
            Err(Trouble::Data(reason)) => tracing::warn!(consumer = self.spec.name, reason, "one by one"),
        }
        let mut results = Vec::with_capacity(batch.len());
        for delivery in batch {
            let mut result = self.attempt(&[delivery], range, &HashMap::new()).await;
            if let Err(Trouble::Data(reason)) = &result {
                let guilty = self.guilty_facts(delivery, reason).await;
                result = self.attempt(&[delivery], range, &guilty).await;
            }
            results.push(result);
        }
        results
    }

    /// Finds the facts that cannot be applied, by applying each alone and rolling back.
    async fn guilty_facts(&self, delivery: &Delivery, whole: &str) -> HashMap<Option<usize>, String> {
        let mut guilty = HashMap::new();
        for index in 0..delivery.incoming.fact_count() {
            let alone = Incoming { selection: Selection::Only(index), ..delivery.incoming.clone() };
            if let Err(Trouble::Data(reason)) = self.rehearse(alone).await {
                guilty.insert(Some(index), reason);
            }
        }
        if guilty.is_empty() {
            // Each fact alone can be applied and all together cannot: only a person can tell why.
            guilty.insert(None, whole.to_owned());
        }
        guilty
    }

    /// Applies a message without a commit.
    async fn rehearse(&self, message: Incoming) -> Result<(), Trouble> {
        let tx = pg::begin(&self.pool).await?;
        let (tx, _) = self.apply(tx, vec![message]).await?;
        Ok(tx.rollback().await?)
    }

    /// Runs the handler in a task of its own, so that a panic is a wrong item and not the end.
    async fn apply(&self, mut tx: Tx, messages: Vec<Incoming>) -> Result<(Tx, Applied), Failure> {
        let handler = Arc::clone(&self.handler);
        let work = tokio::spawn(async move {
            let applied = handler.apply(&mut tx, &messages).await;
            applied.map(|applied| (tx, applied))
        });
        Ok(work.await.map_err(|panic| Failure::Panic(panic.to_string()))??)
    }

    /// One transaction: inbox, effect, dead letters. Tried again when two transactions met.
    async fn attempt(
        &self,
        batch: &[&Delivery],
        range: Range,
        guilty: &HashMap<Option<usize>, String>,
    ) -> Result<(), Trouble> {
        for _ in 0..CONFLICT_RETRIES {
            match self.transaction(batch, range, guilty).await {
                Err(Failure::Postgres(error)) if pg::class(&error) == Class::Conflict => {}
                Err(failure) => return Err(failure.into()),
                Ok(()) => return Ok(()),
            }
        }
        Err(Trouble::Later("transactions keep meeting".to_owned()))
    }

    async fn transaction(
        &self,
        batch: &[&Delivery],
        range: Range,
        guilty: &HashMap<Option<usize>, String>,
    ) -> Result<(), Failure> {
        let mut tx = pg::begin(&self.pool).await?;
        let mut burials = Vec::new();
        let mut valid: Vec<&Delivery> = Vec::with_capacity(batch.len());
        for delivery in batch {
            match self.refusal(delivery, range) {
                Some(parked) => burials.push(delivery.burial(parked)),
                None => valid.push(delivery),
            }
        }
        if self.spec.inbox {
            let ids: Vec<Uuid> = valid.iter().map(|delivery| delivery.incoming.uuid()).collect();
            let mut new = inbox::insert(&mut tx, self.spec.name, &ids).await?;
            // The same event may come twice in one batch: only its first delivery is new.
            valid.retain(|delivery| new.remove(&delivery.incoming.uuid()));
        }
        for (index, reason) in guilty {
            let parked = Parked { fact_index: *index, reason: "CANNOT_BE_APPLIED", detail: reason.clone() };
            burials.extend(valid.iter().map(|delivery| delivery.burial(parked.clone())));
        }
        if guilty.contains_key(&None) {
            valid.clear();
        }
        let mut after = None;
        if !valid.is_empty() {
            let messages: Vec<Incoming> = valid.iter().map(|delivery| delivery.without(guilty)).collect();
            let (open, applied) = self.apply(tx, messages).await?;
            tx = open;
            burials.extend(applied.parked.into_iter().map(|(index, parked)| valid[index].burial(parked)));
            after = applied.after;
        }
        dead_letter::insert(&mut tx, self.spec.name, &burials).await?;
        tx.commit().await?;
        if let Some(after) = after {
            after();
        }
        self.relay.wake();
        Ok(())
    }

    /// Why a message may not be applied at all.
    fn refusal(&self, delivery: &Delivery, range: Range) -> Option<Parked> {
        if !delivery.has_event_id {
            return Some(Parked::message("NO_EVENT_ID", "the header ce-id is missing or malformed"));
        }
        let reason = self.spec.inbox.then(|| range.refuses(delivery.incoming.uuid())).flatten()?;
        Some(Parked::message(reason, "the inbox cannot tell whether this event was applied before"))
    }

    /// Applies one dead letter again. `Ok(false)`: an earlier replay did.
    ///
    /// # Errors
    /// It still cannot be applied; the sentence says why.
    pub async fn replay(&self, dead_letter: &dead_letter::DeadLetter) -> Result<bool, String> {
        let incoming = dead_letter.incoming().ok_or("the message has no event id that could be replayed")?;
        let mut tx = pg::begin(&self.pool).await.map_err(|error| error.to_string())?;
        if !dead_letter::close(&mut tx, dead_letter.dead_letter_id).await.map_err(|error| error.to_string())? {
            return Ok(false);
        }
        let applied = self.apply(tx, vec![incoming]).await;
        let (tx, applied) = applied.map_err(|failure| Trouble::from(failure).to_string())?;
        if let Some((_, parked)) = applied.parked.first() {
            return Err(format!("{}: {}", parked.reason, parked.detail));
        }
        tx.commit().await.map_err(|error| error.to_string())?;
        if let Some(after) = applied.after {
            after();
        }
        self.relay.wake();
        Ok(true)
    }
}

/// Why a transaction did not commit.
enum Failure {
    Postgres(sqlx::Error),
    Panic(String),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Postgres(error)
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Postgres(error) => error.into(),
            Failure::Panic(message) => Self::Data(message),
        }
    }
}

impl Delivery {
    fn read(message: Message, incarnation: &str) -> Self {
        let text = |name: &str| {
            let value = message.headers.as_ref().and_then(|headers| headers.get(name));
            value.map(|value| value.as_str().to_owned()).unwrap_or_default()
        };
        let event_id = text(header::ID).parse::<EventId>();
        let (place, delivery_count) = match message.info() {
            Ok(info) => (format!("{}:{incarnation}:{}", info.stream, info.stream_sequence), info.delivered),
            Err(_) => (format!("{}:{incarnation}", message.subject), 1),
        };
        let headers = message.headers.iter().flat_map(|headers| headers.iter());
        let headers = headers
            .flat_map(|(name, values)| values.iter().map(move |value| (name.to_string(), value.as_str().to_owned())));
        let incoming = Incoming {
            event_id: event_id.clone().unwrap_or(EventId::from_uuid(Uuid::nil())),
            message_type: text(header::TYPE),
            subject: message.subject.to_string(),
            headers: headers.collect(),
            payload: message.payload.clone(),
            delivery_count,
            selection: Selection::All,
        };
        let source = event_id.as_ref().map_or(place, ToString::to_string);
        Self { has_event_id: event_id.is_ok(), message, incoming, source }
    }

    fn burial(&self, parked: Parked) -> Burial<'_> {
        let source = self.source.clone();
        Burial { source, message: &self.incoming, has_event_id: self.has_event_id, parked }
    }

    /// The message without the facts that are set aside.
    fn without(&self, guilty: &HashMap<Option<usize>, String>) -> Incoming {
        let aside: Vec<usize> = guilty.keys().filter_map(|index| *index).collect();
        let selection = if aside.is_empty() { Selection::All } else { Selection::Except(aside) };
        Incoming { selection, ..self.incoming.clone() }
    }
}

async fn acknowledge(deliveries: &[Delivery], kind: impl Fn(&Delivery) -> AckKind) {
    for delivery in deliveries {
        if let Err(error) = delivery.message.ack_with(kind(delivery)).await {
            tracing::debug!(error, "in-progress was not sent");
        }
    }
}
