//! The process's clock, so that tests can move it. Leases, due times and expiry use the database's clock instead: two
//! machines never agree on the time.

use std::time::Instant;

use chrono::{DateTime, Utc};

/// Wall-clock time for records, and a steady clock for durations.
pub trait Clock: std::fmt::Debug + Send + Sync + 'static {
    /// The wall-clock time.
    fn now(&self) -> DateTime<Utc>;
    /// A steady point in time.
    fn instant(&self) -> Instant;
}

/// The machine's own clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place where the machine's clock is read")]
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    fn instant(&self) -> Instant {
        Instant::now()
    }
}
