//! Who calls. The merchant comes from the caller's identity, never from the request. Until authorisation is configured
//! there is one development merchant, and every caller is it.

use crate::error::{Error, Reason, Violation};
use crate::wire::violation;

/// Longest idempotency key.
const MAX_KEY: usize = 255;

/// The call that the running task answers.
#[derive(Debug, Clone)]
pub struct Call {
    /// The merchant on whose behalf the caller acts.
    pub merchant: String,
    /// The idempotency key as sent; empty where none was.
    pub idempotency_key: Option<String>,
    /// The call's deadline; work for a call that nobody waits for is dropped before its transaction.
    pub deadline: Option<tokio::time::Instant>,
}

tokio::task_local! {
    /// The call that the running task answers; the server's edge sets it.
    pub static CALL: Call;
}

impl Call {
    /// The running call.
    ///
    /// # Errors
    /// No edge set it: a mistake of ours.
    pub fn current() -> Result<Self, Error> {
        CALL.try_with(Clone::clone).map_err(|_| Error::internal("the call came around the edge"))
    }

    /// The idempotency key: 1 to 255 visible ASCII characters.
    ///
    /// # Errors
    /// It is missing or malformed.
    pub fn idempotency_key(&self) -> Result<String, Violation> {
        let field = "idempotency-key";
        let Some(key) = self.idempotency_key.as_deref().filter(|key| !key.is_empty()) else {
            let description = "is required as metadata key (HTTP header Idempotency-Key)";
            return Err(violation(field, Reason::IdempotencyKeyMissing, description));
        };
        if key.len() > MAX_KEY || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let description = "must be 1 to 255 visible ASCII characters";
            return Err(violation(field, Reason::IdempotencyKeyMalformed, description));
        }
        Ok(key.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(key: Option<&str>) -> Option<Reason> {
        let call = Call { merchant: "dev".into(), idempotency_key: key.map(Into::into), deadline: None };
        call.idempotency_key().err().map(|violation| violation.reason)
    }

    #[test]
    fn keys_are_1_to_255_visible_characters() {
        assert_eq!(reason(None), Some(Reason::IdempotencyKeyMissing));
        assert_eq!(reason(Some("")), Some(Reason::IdempotencyKeyMissing));
        assert_eq!(reason(Some("a b")), Some(Reason::IdempotencyKeyMalformed));
        assert_eq!(reason(Some("a\u{7f}")), Some(Reason::IdempotencyKeyMalformed));
        assert_eq!(reason(Some(&"k".repeat(256))), Some(Reason::IdempotencyKeyMalformed));
        assert_eq!(reason(Some(&"k".repeat(255))), None);
    }
}
