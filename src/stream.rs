//! JetStream: the connection, and the streams and consumers that the platform needs.
//!
//! JetStream is a transport that can be rebuilt, not a store: streams keep what was published for a week, so that a
//! consumer may be late, and refuse what does not fit instead of dropping what was acknowledged. One provisioning role
//! is to make and mend streams and consumers; until there is one, each service makes what it lacks.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions};

/// The services that publish; each has one stream.
pub const PUBLISHERS: [&str; 4] = ["payment-api", "psp-worker", "ledger-svc", "balance-svc"];

/// How long an acknowledgement may be outstanding before the message is delivered again. A batch takes milliseconds;
/// a longer one says that it is in progress.
pub const ACK_WAIT: Duration = Duration::from_secs(30);

/// How long a published message's id is remembered. The inbox is what makes effects happen once; this only spares work.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// How long streams keep messages.
const MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How much a stream keeps at most; then it refuses, and the outbox waits.
const MAX_BYTES: i64 = 8 << 30;
/// Messages that a consumer may have delivered and not acknowledged.
const MAX_ACK_PENDING: i64 = 1024;

/// A durable consumer: its name, the stream it reads and which messages.
#[derive(Debug, Clone, Copy)]
pub struct ConsumerSpec {
    /// Durable name, unique in the stream.
    pub name: &'static str,
    /// The service that publishes what it reads.
    pub publisher: &'static str,
    /// Short names of the messages, for example `ExecuteCharges`.
    pub messages: &'static [&'static str],
    /// Messages in one batch at most.
    pub max_batch: usize,
    /// Whether applied events are noted in the inbox. Not needed where the effect's own key is unique for ever.
    pub inbox: bool,
}

/// A connection to NATS.
#[derive(Debug, Clone)]
pub struct Broker {
    client: Client,
    js: Context,
}

/// Name of a publisher's stream.
#[must_use]
pub fn stream_name(publisher: &str) -> String {
    format!("FLORIN_{}", publisher.to_uppercase().replace('-', "_"))
}

/// Subject of a publisher's message.
#[must_use]
pub fn subject(publisher: &str, message_type: &str, partition: u16) -> String {
    let message = message_type.rsplit('.').next().unwrap_or(message_type);
    format!("florin.{publisher}.v1.{message}.{partition}")
}

impl Broker {
    /// A connection that is made in the background and mends itself for ever.
    ///
    /// # Errors
    /// The URL is malformed.
    pub async fn connect(url: &str, name: &str) -> Result<Self, async_nats::ConnectError> {
        let client = ConnectOptions::new()
            .name(name)
            .retry_on_initial_connect()
            .max_reconnects(None)
            .ping_interval(Duration::from_secs(5))
            .connection_timeout(Duration::from_secs(2))
            .request_timeout(Some(Duration::from_secs(5)))
            .reconnect_delay_callback(|attempt| Duration::from_millis((50_u64 << attempt.min(5)).min(1_000)))
            .event_callback(|event| async move { tracing::debug!(%event, "nats") })
            .connect(url)
            .await?;
        let js = ContextBuilder::new().timeout(Duration::from_secs(5)).max_ack_inflight(1024).build(client.clone());
        Ok(Self { client, js })
    }

    /// The JetStream context.
    #[must_use]
    pub fn js(&self) -> &Context {
        &self.js
    }

    /// Asks whether NATS answers, with JetStream.
    ///
    /// # Errors
    /// It does not; the sentence says why.
    pub async fn ping(&self) -> Result<(), String> {
        if self.client.connection_state() != async_nats::connection::State::Connected {
            return Err("not connected".to_owned());
        }
        self.js.query_account().await.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Sends what is buffered and closes.
    pub async fn close(&self) {
        if let Err(error) = self.client.drain().await {
            tracing::debug!(%error, "nats was gone before it could be closed");
        }
    }

    /// Makes a publisher's stream if it is missing, and mends it if it differs.
    ///
    /// # Errors
    /// NATS does not answer, or refuses the change.
    pub async fn ensure_stream(&self, publisher: &str) -> Result<(), String> {
        let config = Config {
            name: stream_name(publisher),
            description: Some(format!("What {publisher} publishes")),
            subjects: vec![format!("florin.{publisher}.v1.>")],
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::New,
            storage: StorageType::File,
            max_age: MAX_AGE,
            max_bytes: MAX_BYTES,
            duplicate_window: DUPLICATE_WINDOW,
            num_replicas: 1,
            allow_direct: true,
            deny_delete: true,
            deny_purge: true,
            ..Config::default()
        };
        self.js.create_or_update_stream(config).await.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Makes a consumer if it is missing, with its stream.
    ///
    /// # Errors
    /// NATS does not answer, or a consumer of this name has another configuration.
    pub async fn ensure_consumer(&self, spec: &ConsumerSpec) -> Result<PullConsumer, String> {
        self.ensure_stream(spec.publisher).await?;
        let stream = self.js.get_stream(stream_name(spec.publisher)).await.map_err(|error| error.to_string())?;
        let filter = |message: &&str| format!("florin.{}.v1.{message}.*", spec.publisher);
        let config = pull::Config {
            durable_name: Some(spec.name.to_owned()),
            filter_subjects: spec.messages.iter().map(filter).collect(),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            // For ever: what cannot be processed goes to the dead letters, and nothing is dropped by a count.
            max_deliver: -1,
            max_ack_pending: MAX_ACK_PENDING,
            ..pull::Config::default()
        };
        stream.create_consumer(config).await.map_err(|error| error.to_string())
    }

    /// How many messages a consumer has before it: not delivered, and delivered but not acknowledged.
    ///
    /// # Errors
    /// NATS does not answer, or there is no such consumer.
    pub async fn backlog(&self, spec: &ConsumerSpec) -> Result<(i64, i64), String> {
        let stream =
            self.js.get_stream_no_info(stream_name(spec.publisher)).await.map_err(|error| error.to_string())?;
        let info: jetstream::consumer::Info =
            stream.consumer_info(spec.name).await.map_err(|error| error.to_string())?;
        let pending = i64::try_from(info.num_pending).unwrap_or(i64::MAX);
        Ok((pending, i64::try_from(info.num_ack_pending).unwrap_or(i64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_publisher() {
        assert_eq!(stream_name("payment-api"), "FLORIN_PAYMENT_API");
        assert_eq!(subject("payment-api", "florin.psp.v1.ExecuteCharges", 3), "florin.payment-api.v1.ExecuteCharges.3");
    }
}
