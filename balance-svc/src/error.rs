//! What balance-svc refuses.

use florin::error::{Error, Reason};
use florin::id::JournalEntryId;

/// The asked-for version was not reached in time.
#[must_use]
pub fn version_not_reached(wanted: i64, found: i64) -> Error {
    Error::new(Reason::VersionNotReached, format!("the balance has version {found}, not {wanted}; retry"))
        .with("version", found.to_string())
}

/// The entry is not in the balances in time.
#[must_use]
pub fn entry_not_applied(id: JournalEntryId) -> Error {
    Error::new(Reason::EntryNotApplied, format!("{id} is not in the balances yet; retry"))
}
