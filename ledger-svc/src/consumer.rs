//! What ledger-svc hears: payment orders that were captured. It needs no inbox: the entries' ids are unique for ever.

use florin::consumer::{Applied, Handler};
use florin::envelope::{Incoming, Parked};
use florin::pg::Tx;
use florin::proto::payment::v1::PaymentOrdersSucceeded;
use florin::stream::ConsumerSpec;
use sqlx::PgPool;
use uuid::Uuid;

use crate::posting::Entry;
use crate::store::{EntryOf, Posted, Store};
use crate::wire;

/// The consumer of captured payment orders.
pub const SPEC: ConsumerSpec = ConsumerSpec {
    name: "ledger-svc-captures",
    publisher: "payment-api",
    messages: &["PaymentOrdersSucceeded"],
    max_batch: 64,
    inbox: false,
};

/// Posts captures and fees.
#[derive(Debug)]
pub struct Captures {
    store: Store,
}

impl Captures {
    /// A handler on this store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

#[tonic::async_trait]
impl Handler for Captures {
    async fn apply(&self, tx: &mut Tx, messages: &[Incoming]) -> Result<Applied, sqlx::Error> {
        let mut parked = Vec::new();
        let mut entries: Vec<EntryOf> = Vec::new();
        for (message, incoming) in messages.iter().enumerate() {
            let facts = match incoming.facts::<PaymentOrdersSucceeded>() {
                Ok(facts) => facts,
                Err(whole) => {
                    parked.push((message, whole));
                    continue;
                }
            };
            for (index, fact) in facts {
                let traceparent = fact.context.as_ref().map(|context| context.traceparent.clone()).unwrap_or_default();
                let made = wire::capture(&fact, incoming.event_id).map_err(|detail| ("MALFORMED_FACT", detail));
                let made =
                    made.and_then(|capture| capture.entries().map_err(|error| ("UNPOSTABLE", error.to_string())));
                match made {
                    Ok(made) => entries.extend(made.into_iter().map(|entry: Entry| EntryOf {
                        entry,
                        traceparent: traceparent.clone(),
                        message,
                        fact: index,
                    })),
                    Err((reason, detail)) => parked.push((message, Parked::fact(index, reason, detail))),
                }
            }
        }
        let Posted { conflicts, accounts } = self.store.post(tx, &entries).await?;
        parked.extend(conflicts.into_iter().map(|(index, detail)| {
            let EntryOf { message, fact, .. } = entries[index];
            (message, Parked::fact(fact, "ENTRY_DIFFERS", detail))
        }));
        let store = self.store.clone();
        Ok(Applied { parked, after: Some(Box::new(move || store.remember(accounts))) })
    }

    async fn missing(&self, _pool: &PgPool, _consumer: &str, events: &[Uuid]) -> Result<Vec<Uuid>, sqlx::Error> {
        self.store.missing_events(events).await
    }
}
