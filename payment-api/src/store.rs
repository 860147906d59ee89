//! All SQL of payment-api.
//!
//! Creating is one transaction for a whole batch: keys, payments, orders, outbox. Applying results is another: inbox,
//! payments locked in the order of their ids, orders, roll-up, outbox. Separate statements, never one data-modifying
//! CTE: its single snapshot would hide a sibling's commit.

mod apply;
mod create;
mod read;

use std::time::Duration;

use florin::relay::Waker;
use sqlx::PgPool;

pub use apply::{Head, Outcome, ReportOf};
pub use create::{Created, NewPayment};
pub use read::{OrderFilter, PaymentFilter};

/// The database.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
    relay: Waker,
    overdue_after: Duration,
}

impl Store {
    /// The store of this database.
    #[must_use]
    pub fn new(pool: PgPool, relay: Waker, overdue_after: Duration) -> Self {
        Self { pool, relay, overdue_after }
    }

    /// Seconds without news after which psp-worker is asked again.
    fn overdue_seconds(&self) -> f64 {
        self.overdue_after.as_secs_f64()
    }
}
