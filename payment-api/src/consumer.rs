//! What payment-api hears: psp-worker's results and progress.

use florin::consumer::{Applied, Handler};
use florin::envelope::{FactMessage as _, Incoming, Parked};
use florin::pg::Tx;
use florin::proto::psp::v1::{ChargesCompleted, ChargesProgressed};
use florin::stream::ConsumerSpec;

use crate::store::{ReportOf, Store};
use crate::watch::Watches;
use crate::wire::{completed_report, progressed_report};

/// The consumer of psp-worker's events.
pub const SPEC: ConsumerSpec = ConsumerSpec {
    name: "payment-api-results",
    publisher: "psp-worker",
    messages: &["ChargesCompleted", "ChargesProgressed"],
    max_batch: 64,
    inbox: true,
};

/// Applies psp-worker's reports.
#[derive(Debug)]
pub struct Results {
    store: Store,
    watches: Watches,
}

impl Results {
    /// A handler on this store.
    #[must_use]
    pub fn new(store: Store, watches: Watches) -> Self {
        Self { store, watches }
    }
}

/// A report with its place: which message, which fact.
type Placed = (usize, usize, ReportOf);

#[tonic::async_trait]
impl Handler for Results {
    async fn apply(&self, tx: &mut Tx, messages: &[Incoming]) -> Result<Applied, sqlx::Error> {
        let mut parked = Vec::new();
        let mut placed: Vec<Placed> = Vec::new();
        for (message, incoming) in messages.iter().enumerate() {
            if let Err(whole) = read(message, incoming, &mut placed, &mut parked) {
                parked.push((message, whole));
            }
        }
        let reports: Vec<ReportOf> = placed.iter().map(|(_, _, report)| report.clone()).collect();
        let outcome = self.store.apply(tx, &reports).await?;
        for (index, reason, detail) in outcome.parked {
            let (message, fact, _) = &placed[index];
            parked.push((*message, Parked::fact(*fact, reason, detail)));
        }
        let (watches, changed) = (self.watches.clone(), outcome.changed);
        Ok(Applied { parked, after: Some(Box::new(move || watches.tell(&changed))) })
    }
}

/// Reads a message's reports; facts that cannot be read are parked alone.
fn read(
    message: usize,
    incoming: &Incoming,
    placed: &mut Vec<Placed>,
    parked: &mut Vec<(usize, Parked)>,
) -> Result<(), Parked> {
    let mut take = |fact: usize, payment_id: &str, context: Option<&florin::proto::common::v1::FactContext>, report| {
        let report = Result::and_then(report, |report| {
            Ok(ReportOf {
                payment_id: payment_id.parse().map_err(|error| format!("payment_id {error}"))?,
                report,
                event_id: incoming.event_id,
                traceparent: context.map(|context| context.traceparent.clone()).unwrap_or_default(),
            })
        });
        match report {
            Ok(report) => placed.push((message, fact, report)),
            Err(detail) => parked.push((message, Parked::fact(fact, "MALFORMED_FACT", detail))),
        }
    };
    if incoming.message_type == ChargesProgressed::TYPE {
        for (index, fact) in incoming.facts::<ChargesProgressed>()? {
            take(index, &fact.payment_id, fact.context.as_ref(), progressed_report(&fact));
        }
    } else {
        for (index, fact) in incoming.facts::<ChargesCompleted>()? {
            take(index, &fact.payment_id, fact.context.as_ref(), completed_report(&fact));
        }
    }
    Ok(())
}
