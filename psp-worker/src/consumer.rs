//! What psp-worker hears: commands to charge.
//!
//! A message is accepted, not held through its calls: inbox, charges and the claims of those that find a free slot are
//! committed, the message is acknowledged, then the PSP is called. Charges without a slot wait in the table, where any
//! replica may claim them.

use florin::consumer::{Applied, Handler};
use florin::envelope::{Incoming, Parked};
use florin::pg::Tx;
use florin::proto::psp::v1::ExecuteCharges;
use florin::proto::psp::v1::execute_charges::{Charge, Fact};
use florin::stream::ConsumerSpec;
use florin::wire::trusted_money;

use crate::executor::Executor;
use crate::store::{NewCharge, Store};

/// The consumer of commands to charge.
pub const SPEC: ConsumerSpec = ConsumerSpec {
    name: "psp-worker-charges",
    publisher: "payment-api",
    messages: &["ExecuteCharges"],
    max_batch: 16,
    inbox: true,
};

/// Accepts charges.
#[derive(Debug)]
pub struct Charges {
    store: Store,
    executor: Executor,
    psp_account: String,
}

impl Charges {
    /// A handler for charges at this PSP account.
    #[must_use]
    pub fn new(store: Store, executor: Executor, psp_account: String) -> Self {
        Self { store, executor, psp_account }
    }

    fn read(&self, fact: &Fact, charge: &Charge, incoming: &Incoming) -> Result<NewCharge, (&'static str, String)> {
        let malformed = |field: &str, error: &dyn std::fmt::Display| ("MALFORMED_FACT", format!("{field} {error}"));
        let context = fact.context.as_ref().ok_or(("MALFORMED_FACT", "the context is missing".to_owned()))?;
        if fact.psp_account != self.psp_account {
            return Err(("UNKNOWN_PSP_ACCOUNT", format!("{} is not served here", fact.psp_account)));
        }
        let id = |field: &str, text: &str| -> Result<uuid::Uuid, (&'static str, String)> {
            match field {
                "charge_id" => text.parse().map(florin::id::ChargeId::uuid).map_err(|error| malformed(field, &error)),
                "payment_order_id" => {
                    text.parse().map(florin::id::PaymentOrderId::uuid).map_err(|error| malformed(field, &error))
                }
                _ => text.parse().map(florin::id::PaymentId::uuid).map_err(|error| malformed(field, &error)),
            }
        };
        Ok(NewCharge {
            charge_id: id("charge_id", &charge.charge_id)?,
            payment_order_id: id("payment_order_id", &charge.payment_order_id)?,
            payment_id: id("payment_id", &fact.payment_id)?,
            merchant_id: context.merchant_id.clone(),
            order_id: fact.order_id.clone(),
            seller_id: charge.seller_id.clone(),
            amount: trusted_money(charge.amount.as_ref()).map_err(|error| malformed("amount", &error))?,
            payment_token: fact.payment_token.clone(),
            psp_account: fact.psp_account.clone(),
            event_id: incoming.event_id,
            traceparent: context.traceparent.clone(),
        })
    }
}

#[tonic::async_trait]
impl Handler for Charges {
    async fn apply(&self, tx: &mut Tx, messages: &[Incoming]) -> Result<Applied, sqlx::Error> {
        let mut parked = Vec::new();
        let mut charges = Vec::new();
        for (message, incoming) in messages.iter().enumerate() {
            let facts = match incoming.facts::<ExecuteCharges>() {
                Ok(facts) => facts,
                Err(whole) => {
                    parked.push((message, whole));
                    continue;
                }
            };
            for (index, fact) in facts {
                // A payment's charges are accepted together or not at all.
                match fact
                    .charges
                    .iter()
                    .map(|charge| self.read(&fact, charge, incoming))
                    .collect::<Result<Vec<_>, _>>()
                {
                    Ok(read) => charges.extend(read),
                    Err((reason, detail)) => parked.push((message, Parked::fact(index, reason, detail))),
                }
            }
        }
        self.store.accept(tx, &charges).await?;
        let claimed = self.executor.claim_in_tx(tx).await?;
        let executor = self.executor.clone();
        Ok(Applied { parked, after: Some(Box::new(move || executor.start(claimed))) })
    }
}
