//! What ledger-svc refuses.

use florin::error::{Error, Reason};
use florin::id::JournalEntryId;

/// The merchant has no such entry.
#[must_use]
pub fn entry_not_found(id: JournalEntryId) -> Error {
    Error::new(Reason::JournalEntryNotFound, format!("there is no journal entry {id}"))
}
