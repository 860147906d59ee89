//! CreatePayment's request: every check before the first write, all mistakes at once, and the fingerprint of what was
//! asked.

use std::collections::BTreeMap;
use std::time::Duration;

use florin::error::{Error, Reason, Violations};
use florin::money::Money;
use florin::proto::common::v1 as common;
use florin::proto::payment::v1 as proto;
use florin::wire;
use sha2::{Digest as _, Sha256};

use crate::config::Psp;
use crate::payment::sum;

/// Most lines of a payment.
const MAX_LINES: usize = 100;
/// Longest token of a PSP.
const MAX_TOKEN: usize = 128;
/// Longest description.
const MAX_DESCRIPTION: usize = 500;
/// Most metadata pairs, longest key and longest value.
const MAX_METADATA: (usize, usize, usize) = (20, 40, 200);
/// Longest `wait`.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// Of the canonical content: a rolling upgrade that changes it must not turn a retry into a mismatch.
pub const FINGERPRINT_VERSION: i16 = 1;

/// What was asked, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// The merchant's id of the order.
    pub order_id: String,
    /// The merchant's id of the buyer.
    pub buyer_id: String,
    /// What the buyer pays.
    pub total: Money,
    /// The PSP's token.
    pub payment_token: String,
    /// The sellers' parts.
    pub lines: Vec<Line>,
    /// The merchant's description.
    pub description: String,
    /// The merchant's pairs.
    pub metadata: BTreeMap<String, String>,
    /// How long to wait for the end.
    pub wait: Duration,
    /// Whether to write nothing.
    pub validate_only: bool,
}

/// One seller's part, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// The merchant's id of the seller.
    pub seller_id: String,
    /// The part.
    pub amount: Money,
    /// The merchant's reference.
    pub seller_reference: String,
}

/// Checks a request.
///
/// # Errors
/// All of its mistakes, those of the idempotency key among them.
pub fn check(
    request: proto::CreatePaymentRequest,
    key: Result<String, florin::error::Violation>,
    psp: &Psp,
) -> Result<(Order, String), Error> {
    let mut violations = Violations::default();
    let proto::CreatePaymentRequest {
        order_id,
        buyer_id,
        total,
        payment_source,
        lines,
        description,
        metadata,
        wait,
        validate_only,
    } = request;
    let key = violations.take(key);
    let order_id = violations.take(wire::caller_id("order_id", &order_id));
    let buyer_id = violations.take(wire::caller_id("buyer_id", &buyer_id));
    let total = amount(&mut violations, "total", total.as_ref());
    let token = payment_source.map(|source| source.token).unwrap_or_default();
    let payment_token = violations.take(wire::identifier("payment_source.token", &token, MAX_TOKEN));
    let lines = check_lines(&mut violations, lines, total, psp);
    let description = violations.take(wire::text("description", &description, MAX_DESCRIPTION));
    let metadata = check_metadata(&mut violations, metadata);
    let wait = check_wait(&mut violations, wait);
    violations.finish()?;
    // Every check above noted its mistake, so nothing can be missing here.
    let complete = || Some((order_id?, buyer_id?, total?, payment_token?, description?, key?));
    let Some((order_id, buyer_id, total, payment_token, description, key)) = complete() else {
        return Err(Error::internal("a field was neither taken nor refused"));
    };
    let order = Order { order_id, buyer_id, total, payment_token, lines, description, metadata, wait, validate_only };
    Ok((order, key))
}

fn amount(violations: &mut Violations, field: &str, value: Option<&common::Money>) -> Option<Money> {
    match wire::amount(field, value) {
        Ok(money) => Some(money),
        Err(found) => {
            for violation in found {
                violations.add(violation.field, violation.reason, violation.description);
            }
            None
        }
    }
}

fn check_lines(
    violations: &mut Violations,
    lines: Vec<proto::PaymentLine>,
    total: Option<Money>,
    psp: &Psp,
) -> Vec<Line> {
    if lines.is_empty() {
        violations.add("lines", Reason::LinesEmpty, "needs at least one line");
    } else if lines.len() > MAX_LINES {
        violations.add(
            "lines",
            Reason::TooManyLines,
            format!("has {} lines, at most {MAX_LINES} are allowed", lines.len()),
        );
        return Vec::new();
    }
    let count = lines.len();
    let lines: Vec<Line> = lines
        .into_iter()
        .enumerate()
        .filter_map(|(index, line)| check_line(violations, &format!("lines[{index}]"), line, total, psp))
        .collect();
    // The sum says something only when every line of it is right.
    if let Some(total) = total
        && lines.len() == count
        && lines.iter().all(|line| line.amount.currency == total.currency)
    {
        let sum = sum(total.currency, lines.iter().map(|line| line.amount));
        if sum != Some(total) && !lines.is_empty() {
            let sum = sum.map_or_else(|| "more than fits".to_owned(), |sum| sum.minor_units.to_string());
            let description = format!("is {}, but the lines sum up to {sum}", total.minor_units);
            violations.add("total.minor_units", Reason::TotalMismatch, description);
        }
    }
    lines
}

fn check_line(
    violations: &mut Violations,
    path: &str,
    line: proto::PaymentLine,
    total: Option<Money>,
    psp: &Psp,
) -> Option<Line> {
    let proto::PaymentLine { seller_id, amount: value, seller_reference } = line;
    let seller_id = violations.take(wire::caller_id(&format!("{path}.seller_id"), &seller_id));
    let amount = amount(violations, &format!("{path}.amount"), value.as_ref());
    let seller_reference = violations.take(wire::text(&format!("{path}.seller_reference"), &seller_reference, 64));
    if let (Some(amount), Some(total)) = (amount, total)
        && amount.currency != total.currency
    {
        let description = format!("is {}, but the total is in {}", amount.currency, total.currency);
        violations.add(format!("{path}.amount.currency_code"), Reason::CurrencyMixed, description);
    }
    if let Some(unit) = amount.and_then(|amount| psp.granularity.refuses(amount)) {
        let description = format!("must be a multiple of {unit}: the PSP charges no smaller unit");
        violations.add(format!("{path}.amount.minor_units"), Reason::AmountGranularity, description);
    }
    Some(Line { seller_id: seller_id?, amount: amount?, seller_reference: seller_reference? })
}

fn check_metadata(
    violations: &mut Violations,
    metadata: impl IntoIterator<Item = (String, String)>,
) -> BTreeMap<String, String> {
    let metadata: BTreeMap<String, String> = metadata.into_iter().collect();
    let (pairs, longest_key, longest_value) = MAX_METADATA;
    if metadata.len() > pairs {
        let description = format!("has {} pairs, at most {pairs} are allowed", metadata.len());
        violations.add("metadata", Reason::TooManyMetadata, description);
        return BTreeMap::new();
    }
    for (index, (key, value)) in metadata.iter().enumerate() {
        // The path holds the pair's place and not its key: a key may be anything, a card number too.
        violations.take(wire::text(&format!("metadata[{index}].key"), key, longest_key));
        violations.take(wire::text(&format!("metadata[{index}].value"), value, longest_value));
    }
    metadata
}

fn check_wait(violations: &mut Violations, wait: Option<prost_types::Duration>) -> Duration {
    let Some(wait) = wait else { return Duration::ZERO };
    match Duration::try_from(wait) {
        Ok(wait) if wait <= MAX_WAIT => wait,
        _ => {
            violations.add("wait", Reason::DurationOutOfRange, "must be 0 to 5 s");
            Duration::ZERO
        }
    }
}

impl Order {
    /// A hash of the canonical content. `wait` is no part of it: a caller may repeat a call with another patience.
    #[must_use]
    pub fn fingerprint(&self) -> Vec<u8> {
        let mut hasher = Sha256::new();
        let mut put = |text: &str| {
            // Each part with its length, so that no two contents run together into one.
            hasher.update(text.len().to_be_bytes());
            hasher.update(text.as_bytes());
        };
        put("CreatePayment");
        put(&self.order_id);
        put(&self.buyer_id);
        put(&self.total.to_string());
        put(&self.payment_token);
        put(&self.description);
        for line in &self.lines {
            put("line");
            put(&line.seller_id);
            put(&line.amount.to_string());
            put(&line.seller_reference);
        }
        for (key, value) in &self.metadata {
            put("metadata");
            put(key);
            put(value);
        }
        hasher.finalize().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use florin::wire::violation;

    fn money(code: &str, minor_units: i64) -> Option<common::Money> {
        Some(common::Money { currency_code: code.into(), minor_units })
    }

    fn line(seller: &str, units: i64) -> proto::PaymentLine {
        proto::PaymentLine { seller_id: seller.into(), amount: money("EUR", units), seller_reference: String::new() }
    }

    fn valid() -> proto::CreatePaymentRequest {
        proto::CreatePaymentRequest {
            order_id: "order-1".into(),
            buyer_id: "buyer-1".into(),
            total: money("EUR", 300),
            payment_source: Some(proto::PaymentSource { token: "tok_ok".into() }),
            lines: vec![line("a", 100), line("b", 200)],
            ..Default::default()
        }
    }

    fn psp() -> Psp {
        Psp { account: "main".into(), granularity: "ISK:100".parse().unwrap() }
    }

    fn mistakes(request: proto::CreatePaymentRequest) -> Vec<(String, Reason)> {
        match check(request, Ok("key".into()), &psp()) {
            Ok(_) => Vec::new(),
            Err(error) => error.violations.into_iter().map(|v| (v.field, v.reason)).collect(),
        }
    }

    #[test]
    fn each_mistake_has_its_own_reason_and_field() {
        type Spoil = fn(&mut proto::CreatePaymentRequest);
        #[rustfmt::skip]
        let cases: [(Spoil, &str, Reason); 22] = [
            (|r| r.lines.clear(), "lines", Reason::LinesEmpty),
            (|r| r.lines = vec![line("a", 3); 101], "lines", Reason::TooManyLines),
            (|r| r.lines[0] = line("a", 0), "lines[0].amount.minor_units", Reason::AmountNotPositive),
            (|r| r.lines[1] = line("a", -1), "lines[1].amount.minor_units", Reason::AmountNotPositive),
            (|r| r.total = money("EUR", 1_000_000_000_000), "total.minor_units", Reason::AmountTooLarge),
            (|r| r.total = money("XTS", 300), "total.currency_code", Reason::CurrencyUnknown),
            (|r| r.total = None, "total", Reason::FieldRequired),
            (|r| r.lines[1].amount = money("USD", 200), "lines[1].amount.currency_code", Reason::CurrencyMixed),
            (|r| r.total = money("EUR", 301), "total.minor_units", Reason::TotalMismatch),
            (|r| r.order_id = "x".repeat(65), "order_id", Reason::IdTooLong),
            (|r| r.buyer_id = "a\u{7}b".into(), "buyer_id", Reason::IdCharacters),
            (|r| r.lines[0].seller_id.clear(), "lines[0].seller_id", Reason::FieldRequired),
            (|r| r.payment_source = None, "payment_source.token", Reason::FieldRequired),
            (|r| r.payment_source = Some(proto::PaymentSource { token: "4242424242424242".into() }), "payment_source.token", Reason::CardNumber),
            (|r| r.order_id = "4242424242424242".into(), "order_id", Reason::CardNumber),
            (|r| r.description = "4242 4242 4242 4242".into(), "description", Reason::CardNumber),
            (|r| r.description = "a\nb".into(), "description", Reason::ControlCharacters),
            (|r| r.description = "x".repeat(501), "description", Reason::TextTooLong),
            (|r| r.metadata = (0..21).map(|n| (n.to_string(), String::new())).collect(), "metadata", Reason::TooManyMetadata),
            (|r| r.metadata = [("k".repeat(41), String::new())].into(), "metadata[0].key", Reason::TextTooLong),
            (|r| r.wait = Some(prost_types::Duration { seconds: 6, nanos: 0 }), "wait", Reason::DurationOutOfRange),
            (|r| r.wait = Some(prost_types::Duration { seconds: -1, nanos: 0 }), "wait", Reason::DurationOutOfRange),
        ];
        for (spoil, field, reason) in cases {
            let mut request = valid();
            spoil(&mut request);
            assert_eq!(mistakes(request), [(field.to_owned(), reason)], "{field}");
        }
        assert_eq!(mistakes(valid()), []);
    }

    #[test]
    fn all_mistakes_of_a_request_come_at_once() {
        let mut request = valid();
        request.order_id.clear();
        request.lines[0].amount = money("EUR", 0);
        request.lines[1].seller_id = "two words".into();
        let missing = Err(violation("idempotency-key", Reason::IdempotencyKeyMissing, "is required"));
        let error = check(request, missing, &psp()).unwrap_err();
        let fields: Vec<_> = error.violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["idempotency-key", "order_id", "lines[0].amount.minor_units", "lines[1].seller_id"]);
    }

    #[test]
    fn two_lines_of_one_seller_are_two_orders() {
        let mut request = valid();
        request.lines[1].seller_id = "a".into();
        let (order, _) = check(request, Ok("key".into()), &psp()).unwrap();
        assert_eq!(order.lines.len(), 2);
    }

    #[test]
    fn amounts_that_the_psp_cannot_charge_are_refused() {
        let mut request = valid();
        request.total = money("ISK", 150);
        request.lines = vec![proto::PaymentLine { amount: money("ISK", 150), ..line("a", 0) }];
        assert_eq!(mistakes(request), [("lines[0].amount.minor_units".to_owned(), Reason::AmountGranularity)]);
    }

    #[test]
    fn the_fingerprint_covers_all_content_but_wait() {
        let fingerprint = |spoil: fn(&mut proto::CreatePaymentRequest)| {
            let mut request = valid();
            spoil(&mut request);
            check(request, Ok("key".into()), &psp()).unwrap().0.fingerprint()
        };
        let original = fingerprint(|_| {});
        assert_eq!(fingerprint(|r| r.wait = Some(prost_types::Duration { seconds: 5, nanos: 0 })), original);
        let others: [fn(&mut proto::CreatePaymentRequest); 6] = [
            |r| r.order_id = "order-2".into(),
            |r| r.lines.reverse(),
            |r| r.lines[0].seller_reference = "x".into(),
            |r| r.description = "x".into(),
            |r| r.metadata = [("a".into(), "b".into())].into(),
            |r| r.payment_source = Some(proto::PaymentSource { token: "tok_declined".into() }),
        ];
        for other in others {
            assert_ne!(fingerprint(other), original);
        }
    }
}
