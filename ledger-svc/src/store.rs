//! All SQL of ledger-svc.
//!
//! Posting is one transaction for a whole batch: accounts, entries, postings, outbox, one statement each. An entry that
//! is there already is compared, never overwritten: a difference is an alarm.

mod post;
mod read;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use florin::account::Account;
use sqlx::PgPool;

pub use post::{EntryOf, Posted};
pub use read::{EntryFilter, Line, Stored, Total};

/// Accounts known to this process: they never change, and few are new in a batch.
pub type Known = HashMap<(String, Account), i64>;

/// The database.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
    known: Arc<Mutex<Known>>,
}

impl Store {
    /// The store of this database.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool, known: Arc::default() }
    }
}
