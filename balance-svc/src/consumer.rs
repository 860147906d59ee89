//! What balance-svc hears: entries that were written into the journal.

use std::sync::Arc;

use florin::consumer::{Applied, Handler};
use florin::envelope::{self, Incoming, Keyed, Parked};
use florin::outbox;
use florin::pg::Tx;
use florin::proto::balance::v1::BalancesChanged;
use florin::proto::ledger::v1::EntriesRecorded;
use florin::stream::ConsumerSpec;

use crate::cached::Cached;
use crate::store::{EntryOf, Store};
use crate::wire;

/// The consumer of journal entries.
pub const SPEC: ConsumerSpec = ConsumerSpec {
    name: "balance-svc-entries",
    publisher: "ledger-svc",
    messages: &["EntriesRecorded"],
    max_batch: 64,
    inbox: true,
};

/// Folds entries into balances.
#[derive(Debug)]
pub struct Entries {
    store: Store,
    cached: Arc<Cached>,
    publish_changes: bool,
}

impl Entries {
    /// A handler on this store and cache.
    #[must_use]
    pub fn new(store: Store, cached: Cached, publish_changes: bool) -> Self {
        Self { store, cached: Arc::new(cached), publish_changes }
    }
}

#[tonic::async_trait]
impl Handler for Entries {
    async fn apply(&self, tx: &mut Tx, messages: &[Incoming]) -> Result<Applied, sqlx::Error> {
        let mut parked = Vec::new();
        let mut entries: Vec<EntryOf> = Vec::new();
        for (message, incoming) in messages.iter().enumerate() {
            let facts = match incoming.facts::<EntriesRecorded>() {
                Ok(facts) => facts,
                Err(whole) => {
                    parked.push((message, whole));
                    continue;
                }
            };
            for (index, fact) in facts {
                match wire::entry(&fact) {
                    Ok(entry) => entries.push(entry),
                    Err(detail) => parked.push((message, Parked::fact(index, "MALFORMED_FACT", detail))),
                }
            }
        }
        let changed = self.store.apply(tx, &entries).await?;
        if self.publish_changes {
            let balances = self.store.totals_in_tx(tx, &changed).await?;
            let cause = messages.first().map(|incoming| incoming.event_id);
            let facts = balances.iter().filter_map(|(account, as_of)| {
                let fact = wire::changed(account, as_of)?;
                Some(Keyed { key: account.1.entity.clone(), causation_id: cause, traceparent: String::new(), fact })
            });
            outbox::insert(tx, &envelope::pack::<BalancesChanged>(facts.collect())).await?;
        }
        let cached = Arc::clone(&self.cached);
        let refresh = move || {
            tokio::spawn(async move { cached.refresh(changed).await });
        };
        Ok(Applied { parked, after: Some(Box::new(refresh)) })
    }
}
