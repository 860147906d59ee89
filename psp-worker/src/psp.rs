//! What a PSP connector is: how it charges, how it looks up, and what it declares about itself. There will be several.

use std::time::Duration;

use florin::id::ChargeId;
use florin::money::Money;

/// A payment service provider.
#[tonic::async_trait]
pub trait Psp: Send + Sync + std::fmt::Debug + 'static {
    /// Name of the connector.
    fn name(&self) -> &'static str;

    /// Calls to charge. Every answer that the connector's table does not list is [`Answer::Unknown`].
    async fn charge(&self, call: &Call) -> Answer;

    /// Looks a charge up by our reference. Money that moved counts under whichever key it did; an error or a decline
    /// only under this one: that of an earlier key says nothing about a call that is still being processed.
    async fn inquire(&self, charge_id: ChargeId, idempotency_key: &str) -> Answer;
}

/// A call to charge.
#[derive(Debug, Clone)]
pub struct Call {
    /// Our reference.
    pub charge_id: ChargeId,
    /// The key under which the PSP stores its answer: from the charge, the operation and the generation.
    pub idempotency_key: String,
    /// What to charge.
    pub amount: Money,
    /// The PSP's token for the buyer's means of payment.
    pub payment_token: String,
    /// Shown on the PSP's side.
    pub description: String,
}

/// What a connector declares about its PSP (guarantees, rule 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Declaration {
    /// How long the PSP keeps idempotency keys. A key is used for half of that at most.
    pub key_retention: Duration,
    /// The longest that a request may be processed after it was received: before that, "not found" says nothing.
    pub max_processing: Duration,
    /// Whether a look-up sees everything that was written before it.
    pub reads_own_writes: bool,
}

/// What a call or a look-up answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Money moved.
    Succeeded {
        /// What was charged.
        amount: Money,
        /// The PSP's id of it.
        psp_reference: String,
    },
    /// The issuer or the PSP said no. Never retried by itself.
    Declined {
        /// A name of `FailureReason`.
        reason: &'static str,
        /// The PSP's code.
        code: String,
        /// For people.
        message: String,
        /// The PSP's id of it.
        psp_reference: String,
    },
    /// An error that the PSP stored under the key: this key moved nothing and never will.
    Rejected {
        /// The PSP's code.
        code: String,
        /// For people.
        message: String,
    },
    /// The PSP has it and has not decided.
    Pending {
        /// The PSP's id of it.
        psp_reference: String,
    },
    /// The PSP did not take the call: throttled, not reached, or we are not let in. The key stays.
    NotTaken {
        /// Why.
        why: NotTaken,
        /// How long the PSP asks us to wait.
        retry_after: Option<Duration>,
        /// For people.
        message: String,
    },
    /// A look-up found nothing.
    NotFound,
    /// Nobody knows. Left only by evidence.
    Unknown {
        /// A short reason, upper case.
        code: &'static str,
        /// For people.
        message: String,
    },
}

/// Why the PSP did not take a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    /// 429.
    Throttled,
    /// The connection was refused: nothing left this machine.
    Refused,
    /// 401 or 403: our credentials are wrong. Stops the connector, never fails an order.
    Forbidden,
}

impl NotTaken {
    /// A short reason.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Throttled => "THROTTLED",
            Self::Refused => "CONNECTION_REFUSED",
            Self::Forbidden => "FORBIDDEN",
        }
    }
}

impl Answer {
    /// Label of metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Succeeded { .. } => "succeeded",
            Self::Declined { .. } => "declined",
            Self::Rejected { .. } => "rejected",
            Self::Pending { .. } => "pending",
            Self::NotTaken { .. } => "not_taken",
            Self::NotFound => "not_found",
            Self::Unknown { .. } => "unknown",
        }
    }
}
