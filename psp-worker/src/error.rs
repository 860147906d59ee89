//! What psp-worker refuses.

use florin::error::{Error, Reason};
use florin::id::PaymentOrderId;

/// The merchant has no charge for this payment order, or it has not arrived yet.
#[must_use]
pub fn charge_not_found(id: PaymentOrderId) -> Error {
    Error::new(Reason::ChargeNotFound, format!("no charge is known for {id}"))
}
