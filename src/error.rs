//! Errors as callers see them: what was refused, why, and whether to retry. One table leads from reason to gRPC status.
//!
//! Two families: *rejections* are answers of the business (stable reasons, tested one by one), *failures* are trouble
//! with machines. What went wrong inside stands in the log beside the request's id and never reaches the wire.

use std::collections::HashMap;
use std::time::Duration;

use prost::Message;
use tonic::{Code, Status};

pub use crate::proto::common::v1::ErrorReason as Reason;
use crate::proto::google::rpc;

/// The domain of every reason.
const DOMAIN: &str = "florin";

tokio::task_local! {
    /// Id of the request that the running task answers; the server's edge sets it.
    pub static REQUEST_ID: String;
}

/// One mistake in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, for example `lines[2].amount.minor_units`.
    pub field: String,
    /// Why.
    pub reason: Reason,
    /// A sentence for people.
    pub description: String,
}

/// Collects all mistakes of one request, so that a caller mends them in one go.
#[derive(Debug, Default)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// Notes a mistake.
    pub fn add(&mut self, field: impl Into<String>, reason: Reason, description: impl Into<String>) {
        self.0.push(Violation { field: field.into(), reason, description: description.into() });
    }

    /// Takes the value, or notes the mistake.
    pub fn take<T>(&mut self, result: Result<T, Violation>) -> Option<T> {
        result.map_err(|violation| self.0.push(violation)).ok()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// # Errors
    /// There were mistakes: all of them, in one error.
    pub fn finish(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::invalid(self.0)) }
    }
}

/// What a caller is answered when a call is refused or fails.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The stable reason.
    pub reason: Reason,
    /// A sentence for the caller.
    pub message: String,
    /// What a program may want to know, for example the id of the payment that a key belongs to.
    pub metadata: HashMap<String, String>,
    /// The request's mistakes; empty for other reasons.
    pub violations: Vec<Violation>,
}

impl Error {
    /// A refusal or failure with this reason.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), metadata: HashMap::new(), violations: Vec::new() }
    }

    /// A request with mistakes. One mistake gives its own reason, several give `REQUEST_INVALID`.
    #[must_use]
    pub fn invalid(violations: Vec<Violation>) -> Self {
        let reason = match violations.as_slice() {
            [only] => only.reason,
            _ => Reason::RequestInvalid,
        };
        let message = violations.iter().map(|v| format!("{}: {}", v.field, v.description));
        let message = message.collect::<Vec<_>>().join("; ");
        Self { reason, message, metadata: HashMap::new(), violations }
    }

    /// A part that the service needs does not answer.
    #[must_use]
    pub fn unavailable(dependency: &'static str) -> Self {
        Self::new(Reason::DependencyUnavailable, format!("{dependency} does not answer; retry"))
            .with("dependency", dependency)
    }

    /// A mistake of ours. `inner` goes to the log, never to the caller.
    pub fn internal(inner: impl std::fmt::Display) -> Self {
        let request_id = REQUEST_ID.try_with(Clone::clone).unwrap_or_default();
        tracing::error!(requestId = request_id, error = %inner, "internal error");
        Self::new(Reason::Internal, "a mistake of ours; the request's id leads to its log lines")
    }

    /// The same with a metadata pair.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.metadata.insert(key.to_owned(), value.into());
        self
    }

    /// The gRPC code of the reason.
    #[must_use]
    pub fn code(&self) -> Code {
        code(self.reason)
    }
}

/// The one table from reason to gRPC status.
#[must_use]
pub fn code(reason: Reason) -> Code {
    use Reason as R;
    match reason {
        R::Unspecified | R::Internal => Code::Internal,
        R::RequestInvalid
        | R::FieldRequired
        | R::TextTooLong
        | R::ControlCharacters
        | R::IdTooLong
        | R::IdCharacters
        | R::IdPrefix
        | R::IdMalformed
        | R::LinesEmpty
        | R::TooManyLines
        | R::AmountNotPositive
        | R::AmountTooLarge
        | R::CurrencyUnknown
        | R::CurrencyMixed
        | R::TotalMismatch
        | R::AmountGranularity
        | R::CardNumber
        | R::TooManyMetadata
        | R::DurationOutOfRange
        | R::EnumInvalid
        | R::TimeInvalid
        | R::PageSizeInvalid
        | R::PageTokenMalformed
        | R::PageTokenOfOtherQuery
        | R::AccountCodeMalformed
        | R::IdempotencyKeyMissing
        | R::IdempotencyKeyMalformed
        | R::IdempotencyKeyReused => Code::InvalidArgument,
        R::IdempotencyKeyInUse => Code::Aborted,
        R::PaymentNotFound
        | R::PaymentOrderNotFound
        | R::ChargeNotFound
        | R::JournalEntryNotFound
        | R::DeadLetterNotFound => Code::NotFound,
        R::VersionNotReached | R::EntryNotApplied => Code::FailedPrecondition,
        R::Overloaded => Code::ResourceExhausted,
        R::DependencyUnavailable | R::ShuttingDown => Code::Unavailable,
        R::DeadlineExceeded => Code::DeadlineExceeded,
    }
}

/// How long to wait before a retry, where a retry helps.
fn retry_after(reason: Reason) -> Option<Duration> {
    match code(reason) {
        Code::Aborted | Code::ResourceExhausted => Some(Duration::from_millis(500)),
        Code::Unavailable | Code::FailedPrecondition => Some(Duration::from_secs(1)),
        _ => None,
    }
}

/// The name of a reason as it stands in the details: without the enum's prefix.
#[must_use]
pub fn reason_name(reason: Reason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("ERROR_REASON_").unwrap_or(name)
}

fn detail(name: &str, message: &impl Message) -> prost_types::Any {
    let type_url = format!("type.googleapis.com/google.rpc.{name}");
    prost_types::Any { type_url, value: message.encode_to_vec() }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let Error { reason, message, metadata, violations } = error;
        let info = rpc::ErrorInfo { reason: reason_name(reason).to_owned(), domain: DOMAIN.to_owned(), metadata };
        let mut details = vec![detail("ErrorInfo", &info)];
        if !violations.is_empty() {
            let field_violations = violations.into_iter().map(|violation| rpc::bad_request::FieldViolation {
                field: violation.field,
                description: violation.description,
                reason: reason_name(violation.reason).to_owned(),
                ..Default::default()
            });
            let bad_request = rpc::BadRequest { field_violations: field_violations.collect() };
            details.push(detail("BadRequest", &bad_request));
        }
        if let Some(delay) = retry_after(reason) {
            let retry_delay = prost_types::Duration::try_from(delay).ok();
            details.push(detail("RetryInfo", &rpc::RetryInfo { retry_delay }));
        }
        if let Ok(request_id) = REQUEST_ID.try_with(Clone::clone) {
            let request = rpc::RequestInfo { request_id, serving_data: String::new() };
            details.push(detail("RequestInfo", &request));
        }
        let status = rpc::Status { code: i32::from(code(reason)), message: message.clone(), details };
        Status::with_details(code(reason), message, status.encode_to_vec().into())
    }
}

/// Reads what [`From<Error>`] wrote: for clients and tests.
#[must_use]
pub fn from_status(status: &Status) -> Option<Error> {
    let decoded = rpc::Status::decode(status.details()).ok()?;
    let mut error = Error::new(Reason::Unspecified, status.message());
    for any in decoded.details {
        if any.type_url.ends_with("google.rpc.ErrorInfo") {
            let info = rpc::ErrorInfo::decode(any.value.as_slice()).ok()?;
            error.reason = Reason::from_str_name(&format!("ERROR_REASON_{}", info.reason))?;
            error.metadata = info.metadata;
        } else if any.type_url.ends_with("google.rpc.BadRequest") {
            let bad_request = rpc::BadRequest::decode(any.value.as_slice()).ok()?;
            error.violations = bad_request.field_violations.into_iter().filter_map(violation).collect();
        }
    }
    Some(error)
}

fn violation(wire: rpc::bad_request::FieldViolation) -> Option<Violation> {
    let reason = Reason::from_str_name(&format!("ERROR_REASON_{}", wire.reason))?;
    Some(Violation { field: wire.field, reason, description: wire.description })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_travel_at_once_with_field_and_reason() {
        let mut violations = Violations::default();
        violations.add("order_id", Reason::FieldRequired, "is required");
        violations.add("total.minor_units", Reason::AmountNotPositive, "must be at least 1");
        let sent = violations.finish().unwrap_err();
        let status = Status::from(sent.clone());
        assert_eq!(status.code(), Code::InvalidArgument);
        let received = from_status(&status).unwrap();
        assert_eq!(received.reason, Reason::RequestInvalid);
        assert_eq!(received.violations, sent.violations);
    }

    #[test]
    fn one_mistake_gives_its_own_reason() {
        let mut violations = Violations::default();
        violations.add("lines", Reason::LinesEmpty, "needs at least one line");
        assert_eq!(violations.finish().unwrap_err().reason, Reason::LinesEmpty);
    }

    #[test]
    fn the_inside_never_reaches_the_wire() {
        let status = Status::from(Error::internal("password=hunter2"));
        assert!(!format!("{status:?}").contains("hunter2"));
    }
}
