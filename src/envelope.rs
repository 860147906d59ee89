//! The envelope of a message: CloudEvents 1.0 in the NATS binding's binary mode. The body is the protobuf message;
//! everything else stands in headers.

use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

use crate::id::{EventId, partition};

/// Header names, as the CloudEvents NATS binding has them.
pub mod header {
    /// The event id, `evt_…`: never changes, however often the message is published.
    pub const ID: &str = "ce-id";
    /// Full name of the protobuf message.
    pub const TYPE: &str = "ce-type";
    /// The service that published it.
    pub const SOURCE: &str = "ce-source";
    /// Key of the aggregate that the message is partitioned by.
    pub const SUBJECT: &str = "ce-subject";
    /// When it was recorded, RFC 3339.
    pub const TIME: &str = "ce-time";
    /// Version of the CloudEvents specification.
    pub const SPEC_VERSION: &str = "ce-specversion";
    /// The event that caused it, `evt_…`.
    pub const CAUSATION_ID: &str = "ce-causationid";
    /// W3C trace context.
    pub const TRACEPARENT: &str = "traceparent";
}

/// A kind of message: its full name and the facts that it carries.
pub trait FactMessage: Message + Default + 'static {
    /// One fact of this kind.
    type Fact: Message + Default + Clone;
    /// Full protobuf name, for example `florin.payment.v1.PaymentCreated`.
    const TYPE: &'static str;
    /// The message that carries these facts.
    fn of(facts: Vec<Self::Fact>) -> Self;
    /// The facts that it carries.
    fn into_facts(self) -> Vec<Self::Fact>;
    /// The last part of the name, as it stands in subjects.
    fn short_name() -> &'static str {
        Self::TYPE.rsplit('.').next().unwrap_or(Self::TYPE)
    }
}

macro_rules! fact_messages {
    ($($type:literal => $message:path, $fact:path;)*) => {
        /// The full names of all kinds.
        pub const MESSAGE_TYPES: &[&str] = &[$($type),*];
        $(
        impl FactMessage for $message {
            type Fact = $fact;
            const TYPE: &'static str = $type;
            fn of(facts: Vec<$fact>) -> Self {
                Self { facts }
            }
            fn into_facts(self) -> Vec<$fact> {
                self.facts
            }
        }
        )*
    };
}

use crate::proto::{balance::v1 as balance, ledger::v1 as ledger, payment::v1 as payment, psp::v1 as psp};

fact_messages! {
    "florin.payment.v1.PaymentCreated" => payment::PaymentCreated, payment::payment_created::Fact;
    "florin.payment.v1.PaymentOrdersSucceeded" => payment::PaymentOrdersSucceeded, payment::payment_orders_succeeded::Fact;
    "florin.payment.v1.PaymentOrdersFailed" => payment::PaymentOrdersFailed, payment::payment_orders_failed::Fact;
    "florin.payment.v1.PaymentCompleted" => payment::PaymentCompleted, payment::payment_completed::Fact;
    "florin.psp.v1.ExecuteCharges" => psp::ExecuteCharges, psp::execute_charges::Fact;
    "florin.psp.v1.ChargesCompleted" => psp::ChargesCompleted, psp::charges_completed::Fact;
    "florin.psp.v1.ChargesProgressed" => psp::ChargesProgressed, psp::charges_progressed::Fact;
    "florin.ledger.v1.EntriesRecorded" => ledger::EntriesRecorded, ledger::entries_recorded::Fact;
    "florin.balance.v1.BalancesChanged" => balance::BalancesChanged, balance::balances_changed::Fact;
}

/// A message on its way out: one row of the outbox.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The event id.
    pub event_id: EventId,
    /// Full protobuf name.
    pub message_type: &'static str,
    /// Partition of its key.
    pub partition: u16,
    /// Key of the first fact's aggregate: `ce-subject`.
    pub key: String,
    /// The event that caused it.
    pub causation_id: Option<EventId>,
    /// Trace context of the first fact.
    pub traceparent: String,
    /// The encoded message.
    pub payload: Bytes,
}

/// Facts a message holds at most, and bytes: well below the outbox's limit of 512 KiB, so that no row can block the
/// relay.
const MAX_FACTS: usize = 500;
const MAX_BYTES: usize = 256 * 1024;

/// A fact with what its message needs to know of it.
#[derive(Debug, Clone)]
pub struct Keyed<F> {
    /// What it is partitioned by.
    pub key: String,
    /// The event that caused it.
    pub causation_id: Option<EventId>,
    /// Trace context.
    pub traceparent: String,
    /// The fact.
    pub fact: F,
}

/// Packs facts into as few messages as possible: one for each partition, unless that grows too large.
#[must_use]
pub fn pack<M: FactMessage>(facts: Vec<Keyed<M::Fact>>) -> Vec<Outgoing> {
    let mut partitions: Vec<Vec<Keyed<M::Fact>>> = Vec::new();
    partitions.resize_with(usize::from(crate::id::PARTITIONS), Vec::new);
    for fact in facts {
        partitions[usize::from(partition(&fact.key))].push(fact);
    }
    partitions.into_iter().flat_map(split::<M>).collect()
}

/// Splits the facts of one partition into messages of bounded size.
fn split<M: FactMessage>(facts: Vec<Keyed<M::Fact>>) -> Vec<Outgoing> {
    let mut messages = Vec::new();
    let mut current: Vec<Keyed<M::Fact>> = Vec::new();
    let mut bytes = 0;
    for fact in facts {
        let size = fact.fact.encoded_len();
        if !current.is_empty() && (current.len() == MAX_FACTS || bytes + size > MAX_BYTES) {
            messages.push(message::<M>(std::mem::take(&mut current)));
            bytes = 0;
        }
        bytes += size;
        current.push(fact);
    }
    if !current.is_empty() {
        messages.push(message::<M>(current));
    }
    messages
}

fn message<M: FactMessage>(facts: Vec<Keyed<M::Fact>>) -> Outgoing {
    let first = &facts[0];
    Outgoing {
        event_id: EventId::new(),
        message_type: M::TYPE,
        partition: partition(&first.key),
        key: first.key.clone(),
        causation_id: first.causation_id,
        traceparent: first.traceparent.clone(),
        payload: M::of(facts.into_iter().map(|keyed| keyed.fact).collect()).encode_to_vec().into(),
    }
}

/// Why a message, or a fact of it, could not be applied. Stands as `reason` in the dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// Index of the fact in its message; `None` for the message as a whole.
    pub fact_index: Option<usize>,
    /// Stable class, upper case.
    pub reason: &'static str,
    /// What went wrong, for people.
    pub detail: String,
}

impl Parked {
    /// The whole message is set aside.
    pub fn message(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { fact_index: None, reason, detail: detail.into() }
    }

    /// One fact is set aside.
    pub fn fact(index: usize, reason: &'static str, detail: impl Into<String>) -> Self {
        Self { fact_index: Some(index), reason, detail: detail.into() }
    }
}

/// A message as a consumer received it.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The event id.
    pub event_id: EventId,
    /// Full protobuf name.
    pub message_type: String,
    /// NATS subject.
    pub subject: String,
    /// All headers.
    pub headers: Vec<(String, String)>,
    /// The encoded message.
    pub payload: Bytes,
    /// How often it was delivered, this time included.
    pub delivery_count: i64,
    /// Which of its facts are to be applied.
    pub selection: Selection,
}

/// Which facts of a message are to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// All of them.
    All,
    /// One: the others were before.
    Only(usize),
    /// All but these, which are set aside.
    Except(Vec<usize>),
}

impl Selection {
    fn holds(&self, index: usize) -> bool {
        match self {
            Self::All => true,
            Self::Only(only) => *only == index,
            Self::Except(aside) => !aside.contains(&index),
        }
    }
}

/// Any message of facts, undecoded: all of them have `repeated Fact facts = 1`.
#[derive(Clone, PartialEq, Message)]
struct AnyFacts {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    facts: Vec<Bytes>,
}

impl Incoming {
    /// The facts to apply, each with its index in the message.
    ///
    /// # Errors
    /// The message is of another kind, or its body cannot be decoded: it is parked, never guessed at (guarantees,
    /// rule 9).
    pub fn facts<M: FactMessage>(&self) -> Result<Vec<(usize, M::Fact)>, Parked> {
        if self.message_type != M::TYPE {
            return Err(Parked::message("UNEXPECTED_TYPE", format!("{} is not handled here", self.message_type)));
        }
        let message =
            M::decode(self.payload.clone()).map_err(|error| Parked::message("UNDECODABLE", error.to_string()))?;
        let facts = message.into_facts().into_iter().enumerate();
        Ok(facts.filter(|(index, _)| self.selection.holds(*index)).collect())
    }

    /// How many facts the message carries, whatever its kind.
    #[must_use]
    pub fn fact_count(&self) -> usize {
        AnyFacts::decode(self.payload.clone()).map_or(0, |message| message.facts.len())
    }

    /// The event id as the database holds it.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.event_id.uuid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use payment::PaymentCompleted;
    use payment::payment_completed::Fact;

    fn facts(keys: impl Iterator<Item = String>, padding: usize) -> Vec<Keyed<Fact>> {
        keys.map(|key| Keyed {
            fact: Fact { payment_id: key.clone(), order_id: "x".repeat(padding), ..Fact::default() },
            causation_id: None,
            traceparent: String::new(),
            key,
        })
        .collect()
    }

    fn count(messages: &[Outgoing]) -> usize {
        messages.iter().map(|message| PaymentCompleted::decode(message.payload.clone()).unwrap().facts.len()).sum()
    }

    #[test]
    fn one_message_a_partition_not_one_a_fact() {
        let messages = pack::<PaymentCompleted>(facts((0..400).map(|n| n.to_string()), 10));
        assert_eq!(messages.len(), usize::from(crate::id::PARTITIONS));
        assert_eq!(count(&messages), 400);
    }

    #[test]
    fn no_message_outgrows_the_outbox() {
        let messages = pack::<PaymentCompleted>(facts((0..100).map(|_| "one key".to_owned()), 20_000));
        assert!(messages.iter().all(|message| message.payload.len() <= MAX_BYTES + 1024));
        assert_eq!(count(&messages), 100);
    }

    #[test]
    fn another_kind_and_garbage_are_parked() {
        let mut incoming = Incoming {
            event_id: EventId::new(),
            message_type: "florin.psp.v1.ExecuteCharges".into(),
            subject: String::new(),
            headers: Vec::new(),
            payload: Bytes::from_static(&[0xff, 0xff]),
            delivery_count: 1,
            selection: Selection::All,
        };
        assert_eq!(incoming.facts::<PaymentCompleted>().unwrap_err().reason, "UNEXPECTED_TYPE");
        incoming.message_type = PaymentCompleted::TYPE.into();
        assert_eq!(incoming.facts::<PaymentCompleted>().unwrap_err().reason, "UNDECODABLE");
    }
}
