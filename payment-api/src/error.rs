//! What payment-api refuses.

use florin::error::{Error, Reason};
use florin::id::{PaymentId, PaymentOrderId};
use florin::pg::{self, Class};

/// The merchant has no such payment. The same answer for a payment of somebody else's: no oracle.
#[must_use]
pub fn payment_not_found(id: PaymentId) -> Error {
    Error::new(Reason::PaymentNotFound, format!("there is no payment {id}"))
}

/// The merchant has no such payment order.
#[must_use]
pub fn payment_order_not_found(id: PaymentOrderId) -> Error {
    Error::new(Reason::PaymentOrderNotFound, format!("there is no payment order {id}"))
}

/// The idempotency key belongs to other content.
#[must_use]
pub fn key_reused(payment_id: PaymentId) -> Error {
    Error::new(Reason::IdempotencyKeyReused, "the idempotency key was used before with other content")
        .with("payment_id", payment_id.to_string())
}

/// What a failed batch answers to each of its callers.
#[must_use]
pub fn creation_failed(error: &sqlx::Error) -> Error {
    match pg::class(error) {
        // Another call holds the key's row and has not committed in time.
        Class::LockTimeout => Error::new(Reason::IdempotencyKeyInUse, "a call with this key is still running; retry"),
        Class::Down | Class::Conflict => Error::unavailable("postgres"),
        Class::Data | Class::Other => Error::internal(error),
    }
}
