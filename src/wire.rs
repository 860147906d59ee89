//! Conversions and checks that every service's edge needs: time, money, ids and texts, from the wire and to it.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use prost_types::Timestamp;

use crate::account::{Account, MalformedCode};
use crate::error::{Reason, Violation};
use crate::id::IdError;
use crate::money::{Currency, MAX_MINOR_UNITS, Money};
use crate::proto::common::v1 as common;
use crate::proto::payment::v1 as payment;

/// The longest id of a caller's own.
const MAX_ID: usize = 64;

/// The time for the wire.
#[must_use]
pub fn timestamp(time: DateTime<Utc>) -> Timestamp {
    let nanos = i32::try_from(time.timestamp_subsec_nanos()).unwrap_or_default();
    Timestamp { seconds: time.timestamp(), nanos }
}

/// The time from the wire; `None` where it is out of range.
#[must_use]
pub fn time(timestamp: &Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(timestamp.seconds, u32::try_from(timestamp.nanos).ok()?)
}

/// An optional filter time from the wire.
///
/// # Errors
/// The time is out of range.
pub fn filter_time(field: &str, value: Option<&Timestamp>) -> Result<Option<DateTime<Utc>>, Violation> {
    let Some(timestamp) = value else { return Ok(None) };
    time(timestamp).map(Some).ok_or_else(|| violation(field, Reason::TimeInvalid, "is out of range"))
}

/// The amount for the wire.
#[must_use]
pub fn money(money: Money) -> common::Money {
    common::Money { currency_code: money.currency.to_string(), minor_units: money.minor_units }
}

/// An amount that was written by one of our own services.
///
/// # Errors
/// It is missing or in an unknown currency; the sentence says which.
pub fn trusted_money(value: Option<&common::Money>) -> Result<Money, String> {
    let money = value.ok_or("the amount is missing")?;
    let currency = Currency::from_str(&money.currency_code).map_err(|error| error.to_string())?;
    Ok(Money::new(currency, money.minor_units))
}

/// Why a charge failed, for the contracts: `reason` is a name of `FailureReason` without its prefix. One table says who
/// can do something about each.
#[must_use]
pub fn failure(reason: &str, psp_code: &str, message: &str) -> payment::Failure {
    use payment::{FailureCategory as Category, FailureReason as Why};
    let reason = Why::from_str_name(&format!("FAILURE_REASON_{reason}")).unwrap_or(Why::Unspecified);
    let (category, retryable) = match reason {
        Why::Declined | Why::InsufficientFunds => (Category::Buyer, true),
        Why::Expired | Why::SuspectedFraud | Why::InvalidToken => (Category::Buyer, false),
        Why::ProcessingError | Why::PspUnavailable => (Category::Psp, true),
        Why::RequestRefused => (Category::Merchant, false),
        Why::Unspecified => (Category::Unspecified, false),
    };
    payment::Failure {
        reason: reason.into(),
        category: category.into(),
        retryable,
        psp_code: psp_code.to_owned(),
        message: message.to_owned(),
    }
}

/// A caller's account code.
///
/// # Errors
/// It is empty or malformed.
pub fn account(field: &str, code: &str) -> Result<Account, Violation> {
    if code.is_empty() {
        return Err(violation(field, Reason::FieldRequired, "is required"));
    }
    code.parse().map_err(|error: MalformedCode| violation(field, Reason::AccountCodeMalformed, error.to_string()))
}

/// A mistake in a field.
pub fn violation(field: impl Into<String>, reason: Reason, description: impl Into<String>) -> Violation {
    Violation { field: field.into(), reason, description: description.into() }
}

/// A caller's amount: 1 to 999,999,999,999 minor units of a known currency. Both of its mistakes are answered.
///
/// # Errors
/// It is missing, not positive, too large, or in an unknown currency.
pub fn amount(field: &str, value: Option<&common::Money>) -> Result<Money, Vec<Violation>> {
    let Some(value) = value else {
        return Err(vec![violation(field, Reason::FieldRequired, "is required")]);
    };
    let mut violations = Vec::new();
    let currency = Currency::from_str(&value.currency_code).map_err(|error| {
        let field = format!("{field}.currency_code");
        violations.push(violation(field, Reason::CurrencyUnknown, error.to_string()));
    });
    let units = format!("{field}.minor_units");
    if value.minor_units < 1 {
        violations.push(violation(units, Reason::AmountNotPositive, "must be at least 1"));
    } else if value.minor_units > MAX_MINOR_UNITS {
        let limit = format!("must be at most {MAX_MINOR_UNITS}");
        violations.push(violation(units, Reason::AmountTooLarge, limit));
    }
    match currency {
        Ok(currency) if violations.is_empty() => Ok(Money::new(currency, value.minor_units)),
        _ => Err(violations),
    }
}

/// An id of a caller's own: 1 to 64 characters of `[A-Za-z0-9._:-]`.
///
/// # Errors
/// It is empty, too long, holds other characters, or is a card number.
pub fn caller_id(field: &str, value: &str) -> Result<String, Violation> {
    identifier(field, value, MAX_ID)
}

/// Like [`caller_id`], with a limit of its own.
///
/// # Errors
/// As [`caller_id`].
pub fn identifier(field: &str, value: &str, limit: usize) -> Result<String, Violation> {
    if value.is_empty() {
        return Err(violation(field, Reason::FieldRequired, "is required"));
    }
    no_card_number(field, value)?;
    if value.chars().count() > limit {
        let description = format!("must be at most {limit} characters");
        return Err(violation(field, Reason::IdTooLong, description));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
    if !value.chars().all(allowed) {
        return Err(violation(field, Reason::IdCharacters, "may hold only A-Z a-z 0-9 . _ : -"));
    }
    Ok(value.to_owned())
}

/// A caller's text for people: bounded, without control characters, and no card number.
///
/// # Errors
/// It breaks one of these.
pub fn text(field: &str, value: &str, limit: usize) -> Result<String, Violation> {
    no_card_number(field, value)?;
    if value.chars().count() > limit {
        let description = format!("must be at most {limit} characters");
        return Err(violation(field, Reason::TextTooLong, description));
    }
    if value.chars().any(char::is_control) {
        return Err(violation(field, Reason::ControlCharacters, "must not hold control characters"));
    }
    Ok(value.to_owned())
}

/// Refuses what is a card number by length and check digit, and never repeats it.
fn no_card_number(field: &str, value: &str) -> Result<(), Violation> {
    if is_card_number(value) {
        let description = "is a card number; send the PSP's token for it";
        return Err(violation(field, Reason::CardNumber, description));
    }
    Ok(())
}

/// 13 to 19 digits, perhaps grouped by spaces or dashes, with a right check digit (ISO/IEC 7812).
#[must_use]
pub fn is_card_number(value: &str) -> bool {
    if !value.chars().all(|c| c.is_ascii_digit() || c == ' ' || c == '-') {
        return false;
    }
    let digits: Vec<u32> = value.chars().filter_map(|c| c.to_digit(10)).collect();
    (13..=19).contains(&digits.len()) && luhn(&digits)
}

fn luhn(digits: &[u32]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(place, &digit)| match (place % 2, digit) {
            (0, digit) => digit,
            (_, digit) if digit > 4 => digit * 2 - 9,
            (_, digit) => digit * 2,
        })
        .sum();
    sum.is_multiple_of(10)
}

/// One of Florin's own ids.
///
/// # Errors
/// It is empty, of another kind, or no TypeID.
pub fn id<T: FromStr<Err = IdError>>(field: &str, value: &str) -> Result<T, Violation> {
    if value.is_empty() {
        return Err(violation(field, Reason::FieldRequired, "is required"));
    }
    value.parse().map_err(|error: IdError| {
        let reason = match error {
            IdError::Prefix { .. } => Reason::IdPrefix,
            IdError::Malformed { .. } => Reason::IdMalformed,
        };
        violation(field, reason, error.to_string())
    })
}

/// An optional filter by one of Florin's own ids.
///
/// # Errors
/// As [`id`], but empty is no mistake.
pub fn filter_id<T: FromStr<Err = IdError>>(field: &str, value: &str) -> Result<Option<T>, Violation> {
    if value.is_empty() { Ok(None) } else { id(field, value).map(Some) }
}

/// An optional filter by a caller's own id.
///
/// # Errors
/// As [`caller_id`], but empty is no mistake.
pub fn filter_caller_id(field: &str, value: &str) -> Result<Option<String>, Violation> {
    if value.is_empty() { Ok(None) } else { caller_id(field, value).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn card_numbers_are_known_by_their_check_digit() {
        for number in ["4242424242424242", "4242 4242 4242 4242", "378282246310005", "6011-1111-1111-1117"] {
            assert!(is_card_number(number), "{number}");
            assert_eq!(identifier("token", number, 128).unwrap_err().reason, Reason::CardNumber);
        }
        for other in ["4242424242424241", "tok_4242424242424242", "order-17", "", "123456789012"] {
            assert!(!is_card_number(other), "{other}");
        }
    }

    #[test]
    fn ids_of_callers_are_bounded_and_plain() {
        for (value, reason) in [
            ("", Reason::FieldRequired),
            (&*"x".repeat(65), Reason::IdTooLong),
            ("a b", Reason::IdCharacters),
            ("a\nb", Reason::IdCharacters),
            ("ä", Reason::IdCharacters),
        ] {
            assert_eq!(caller_id("seller_id", value).unwrap_err().reason, reason, "{value:?}");
        }
        assert_eq!(caller_id("seller_id", "Shop_1.a:b-c").unwrap(), "Shop_1.a:b-c");
    }

    #[test]
    fn an_amount_answers_both_of_its_mistakes() {
        let wrong = common::Money { currency_code: "XXX".into(), minor_units: 0 };
        let reasons: Vec<_> = amount("total", Some(&wrong)).unwrap_err().iter().map(|v| v.reason).collect();
        assert_eq!(reasons, [Reason::CurrencyUnknown, Reason::AmountNotPositive]);
    }

    proptest! {
        #[test]
        fn times_survive_the_wire(seconds in 0_i64..4_000_000_000, micros in 0_u32..1_000_000) {
            let there = DateTime::from_timestamp(seconds, micros * 1000).unwrap();
            prop_assert_eq!(time(&timestamp(there)), Some(there));
        }
    }
}
