//! All SQL of psp-worker.
//!
//! One claim statement serves new charges, alarms and the sweeper. A claim to charge writes what happens if its worker
//! dies in the call: when the lease ends the charge is due for an inquiry, because then nobody knows. Results are
//! written only under the epoch of their claim.

mod claim;
mod read;
mod write;

use std::time::Duration;

use florin::relay::Waker;
use sqlx::PgPool;

pub use read::{AttemptRow, InquiryRow, Uncertain};
pub use write::{Judged, NewCharge};

/// How long claims hold.
#[derive(Debug, Clone, Copy)]
pub struct Leases {
    /// Of a call to charge.
    pub charge: Duration,
    /// Of an inquiry.
    pub inquiry: Duration,
    /// How old a key may be that is used again.
    pub oldest_key: Duration,
}

/// The database.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
    relay: Waker,
    leases: Leases,
}

impl Store {
    /// The store of this database.
    #[must_use]
    pub fn new(pool: PgPool, relay: Waker, leases: Leases) -> Self {
        Self { pool, relay, leases }
    }
}
