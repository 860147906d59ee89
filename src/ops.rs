//! `ops.v1`: what every service tells its operators, and a consumer its producers.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::auth::Call;
use crate::consumer::Consumer;
use crate::dead_letter::{self, DeadLetter};
use crate::envelope::{Outgoing, header};
use crate::error::{Error, Reason, Violations};
use crate::health::Health;
use crate::id::{EventId, partition};
use crate::page::{self, Query};
use crate::pg;
use crate::proto::ops::v1 as wire;
use crate::proto::ops::v1::ops_service_server::OpsService;
use crate::proto::ops::v1::reconcile_service_server::ReconcileService;
use crate::sweeper::{self, Hint, Round};
use crate::wire::{timestamp, violation};
use crate::{outbox, relay};

/// Dead letters replayed in one call at most.
const MAX_REPLAYS: usize = 100;
/// Events asked for in one call at most.
const MAX_EVENTS: usize = 1000;

/// The operators' view of one service.
#[derive(Debug, Clone)]
pub struct Ops {
    /// Name of the service.
    pub service: &'static str,
    /// Its database.
    pub pool: PgPool,
    /// Its consumers.
    pub consumers: Vec<Consumer>,
    /// What it needs.
    pub health: Health,
    /// Wakes its relay.
    pub relay: relay::Waker,
}

/// What a failed read answers.
pub fn read_failed(error: sqlx::Error) -> Error {
    match pg::class(&error) {
        pg::Class::Down | pg::Class::LockTimeout | pg::Class::Conflict => Error::unavailable("postgres"),
        pg::Class::Data | pg::Class::Other => Error::internal(error),
    }
}

/// Between two looks at what waits.
const OBSERVE: Duration = Duration::from_secs(2);

impl Ops {
    /// Keeps the metrics of what waits: messages for the relay, dead letters for an operator.
    pub async fn observe(self, stop: CancellationToken) {
        sweeper::run("observer", OBSERVE, Hint::default(), stop, || async {
            let outbox = relay::status(&self.pool).await?;
            let open = dead_letter::count_open(&self.pool).await?;
            metrics::gauge!("florin_outbox_backlog").set(figure(outbox.backlog));
            metrics::gauge!("florin_outbox_oldest_seconds").set(outbox.oldest_seconds);
            metrics::gauge!("florin_dead_letters_open").set(figure(open));
            for consumer in &self.consumers {
                // While NATS does not answer the last figure stands; the dependency's own metric says so.
                if let Ok((pending, unacknowledged)) = consumer.broker.backlog(&consumer.spec).await {
                    let lag = figure(pending.saturating_add(unacknowledged));
                    metrics::gauge!("florin_consumer_lag", "consumer" => consumer.spec.name).set(lag);
                }
            }
            Ok::<_, sqlx::Error>(Round::Done)
        })
        .await;
    }

    fn consumer(&self, name: &str) -> Option<&Consumer> {
        self.consumers.iter().find(|consumer| consumer.spec.name == name)
    }

    async fn replay(&self, id: &str) -> Result<bool, String> {
        let id: Uuid = id.parse().map_err(|_| "is no UUID".to_owned())?;
        let found = dead_letter::get(&self.pool, id).await.map_err(|error| error.to_string())?;
        let dead_letter = found.ok_or("there is no such dead letter")?;
        if dead_letter.consumer == relay::CONSUMER {
            return self.publish_again(&dead_letter).await;
        }
        let consumer = self.consumer(&dead_letter.consumer);
        let consumer = consumer.ok_or_else(|| format!("{} is no consumer of this service", dead_letter.consumer))?;
        consumer.clone().replay(&dead_letter).await
    }

    /// What the broker refused is handed to the relay again.
    async fn publish_again(&self, dead_letter: &DeadLetter) -> Result<bool, String> {
        let known = message_type(&dead_letter.message_type).ok_or("its kind is unknown")?;
        let event_id = dead_letter.event_id.map(EventId::from_uuid).ok_or("it has no event id")?;
        let key = header_of(dead_letter, header::SUBJECT);
        let message = Outgoing {
            event_id,
            message_type: known,
            partition: partition(&key),
            key,
            causation_id: None,
            traceparent: header_of(dead_letter, header::TRACEPARENT),
            payload: dead_letter.payload.clone().into(),
        };
        let write = async {
            let mut tx = pg::begin(&self.pool).await?;
            let open = dead_letter::close(&mut tx, dead_letter.dead_letter_id).await?;
            if open {
                outbox::insert(&mut tx, &[message]).await?;
            }
            tx.commit().await?;
            Ok::<_, sqlx::Error>(open)
        };
        let open = write.await.map_err(|error| error.to_string())?;
        self.relay.wake();
        Ok(open)
    }

    async fn status(&self) -> Result<wire::GetMessagingStatusResponse, Error> {
        let outbox = relay::status(&self.pool).await.map_err(read_failed)?;
        let mut consumers = Vec::new();
        for consumer in &self.consumers {
            let backlog = consumer.broker.backlog(&consumer.spec).await;
            let (pending, unacknowledged) = backlog.clone().unwrap_or_default();
            consumers.push(wire::ConsumerStatus {
                name: consumer.spec.name.to_owned(),
                stream: crate::stream::stream_name(consumer.spec.publisher),
                pending,
                unacknowledged,
                error: backlog.err().unwrap_or_default(),
            });
        }
        let dependencies = self.health.dependencies().into_iter().map(|(name, dependency)| wire::DependencyStatus {
            name,
            up: dependency.trouble.is_none(),
            required: dependency.required,
            detail: dependency.trouble.unwrap_or_default(),
        });
        Ok(wire::GetMessagingStatusResponse {
            service: self.service.to_owned(),
            outbox: Some(wire::OutboxStatus {
                backlog: outbox.backlog,
                oldest_time: outbox.oldest.map(timestamp),
                leader: outbox.leader,
                epoch: outbox.epoch,
            }),
            consumers,
            open_dead_letters: dead_letter::count_open(&self.pool).await.map_err(read_failed)?,
            dependencies: dependencies.collect(),
        })
    }
}

#[tonic::async_trait]
impl OpsService for Ops {
    async fn list_dead_letters(
        &self,
        request: Request<wire::ListDeadLettersRequest>,
    ) -> Result<Response<wire::ListDeadLettersResponse>, Status> {
        let wire::ListDeadLettersRequest { page_size, page_token, include_replayed } = request.into_inner();
        let query = Query::new("ListDeadLetters", &Call::current()?.merchant, &include_replayed.to_string());
        let mut violations = Violations::default();
        let size = violations.take(page::size(page_size)).unwrap_or_default();
        let before = violations.take(query.position::<16>(&page_token)).flatten();
        violations.finish()?;
        let before = before.map(Uuid::from_bytes);
        let rows = dead_letter::list(&self.pool, include_replayed, before, size + 1).await;
        let mut rows = rows.map_err(read_failed)?;
        let next_page_token = page::cut(&mut rows, size, &query, |row| row.dead_letter_id.as_bytes().to_vec());
        let dead_letters = rows.into_iter().map(to_wire).collect();
        Ok(Response::new(wire::ListDeadLettersResponse { dead_letters, next_page_token }))
    }

    async fn get_dead_letter(
        &self,
        request: Request<wire::GetDeadLetterRequest>,
    ) -> Result<Response<wire::DeadLetter>, Status> {
        let id = request.into_inner().dead_letter_id;
        let unknown = || Error::new(Reason::DeadLetterNotFound, "there is no such dead letter");
        let id: Uuid = id
            .parse()
            .map_err(|_| Error::invalid(vec![violation("dead_letter_id", Reason::IdMalformed, "must be a UUID")]))?;
        let found = dead_letter::get(&self.pool, id).await.map_err(read_failed)?;
        Ok(Response::new(found.map(to_wire).ok_or_else(unknown)?))
    }

    async fn replay_dead_letters(
        &self,
        request: Request<wire::ReplayDeadLettersRequest>,
    ) -> Result<Response<wire::ReplayDeadLettersResponse>, Status> {
        let ids = request.into_inner().dead_letter_ids;
        count("dead_letter_ids", ids.len(), MAX_REPLAYS)?;
        // A task of its own: a caller who goes away leaves no open transaction.
        let ops = self.clone();
        let work = tokio::spawn(async move {
            let mut results = Vec::with_capacity(ids.len());
            for dead_letter_id in ids {
                let (replayed, error) = match ops.replay(&dead_letter_id).await {
                    Ok(replayed) => (replayed, String::new()),
                    Err(error) => (false, error),
                };
                results.push(wire::ReplayResult { dead_letter_id, replayed, error });
            }
            results
        });
        let results = work.await.map_err(Error::internal)?;
        Ok(Response::new(wire::ReplayDeadLettersResponse { results }))
    }

    async fn get_messaging_status(
        &self,
        _request: Request<wire::GetMessagingStatusRequest>,
    ) -> Result<Response<wire::GetMessagingStatusResponse>, Status> {
        Ok(Response::new(self.status().await?))
    }
}

#[tonic::async_trait]
impl ReconcileService for Ops {
    async fn find_missing_events(
        &self,
        request: Request<wire::FindMissingEventsRequest>,
    ) -> Result<Response<wire::FindMissingEventsResponse>, Status> {
        let wire::FindMissingEventsRequest { consumer, event_ids } = request.into_inner();
        count("event_ids", event_ids.len(), MAX_EVENTS)?;
        let mut violations = Violations::default();
        let ids = event_ids.iter().enumerate().filter_map(|(index, id)| {
            violations.take(crate::wire::id::<EventId>(&format!("event_ids[{index}]"), id)).map(EventId::uuid)
        });
        let ids: Vec<Uuid> = ids.collect();
        let known = self.consumer(&consumer);
        if known.is_none() {
            violations.add("consumer", Reason::EnumInvalid, "is no consumer of this service");
        }
        violations.finish()?;
        let missing = match known {
            Some(known) => known.handler.missing(&self.pool, &consumer, &ids).await.map_err(read_failed)?,
            None => Vec::new(),
        };
        let missing_event_ids = missing.into_iter().map(|id| EventId::from_uuid(id).to_string()).collect();
        Ok(Response::new(wire::FindMissingEventsResponse { missing_event_ids }))
    }
}

/// A count as metrics want it.
fn figure(count: i64) -> f64 {
    i32::try_from(count).map_or(f64::MAX, f64::from)
}

fn count(field: &str, found: usize, most: usize) -> Result<(), Error> {
    let mut violations = Violations::default();
    if found == 0 {
        violations.add(field, Reason::FieldRequired, "needs at least one");
    } else if found > most {
        violations.add(field, Reason::TextTooLong, format!("must be at most {most}"));
    }
    violations.finish()
}

/// The name as the outbox wants it: of a kind that is known at compile time.
fn message_type(name: &str) -> Option<&'static str> {
    crate::envelope::MESSAGE_TYPES.iter().find(|known| **known == name).copied()
}

fn header_of(dead_letter: &DeadLetter, name: &str) -> String {
    headers(dead_letter).remove(name).unwrap_or_default()
}

fn headers(dead_letter: &DeadLetter) -> BTreeMap<String, String> {
    let pairs: Vec<(String, String)> = serde_json::from_value(dead_letter.headers.clone()).unwrap_or_default();
    pairs.into_iter().collect()
}

fn to_wire(dead_letter: DeadLetter) -> wire::DeadLetter {
    let state = match dead_letter.state.as_str() {
        "OPEN" => wire::DeadLetterState::Open,
        "REPLAYED" => wire::DeadLetterState::Replayed,
        _ => wire::DeadLetterState::Unspecified,
    };
    wire::DeadLetter {
        dead_letter_id: dead_letter.dead_letter_id.to_string(),
        headers: headers(&dead_letter).into_iter().collect(),
        consumer: dead_letter.consumer,
        event_id: dead_letter.event_id.map(|id| EventId::from_uuid(id).to_string()).unwrap_or_default(),
        fact_index: dead_letter.fact_index,
        message_type: dead_letter.message_type,
        subject: dead_letter.subject,
        reason: dead_letter.reason,
        detail: dead_letter.detail,
        delivery_count: i32::try_from(dead_letter.delivery_count).unwrap_or(i32::MAX),
        state: state.into(),
        create_time: Some(timestamp(dead_letter.created_at)),
        replay_time: dead_letter.replayed_at.map(timestamp),
        payload: dead_letter.payload.into(),
    }
}
