//! The connector of the PSP simulator: HTTP/JSON, as real PSPs speak it.
//!
//! The table of its answers: 200 with a status it documents; 402 declined, stored; 422 with `stored: true`, an error
//! stored under the key; 429 throttled; 401 and 403 not let in; 409 the key is in progress. Everything else, a 5xx and
//! a garbled body among them, is unknown.

use std::time::Duration;

use florin::id::ChargeId;
use florin::money::Money;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Secret};
use crate::psp::{Answer, Call, Declaration, NotTaken, Psp};

/// Name of the connector.
pub const NAME: &str = "simulator";

/// What the simulator declares: keys are kept for a day, a request is processed within 4 s, and a look-up sees what was
/// written before it.
pub const DECLARATION: Declaration = Declaration {
    key_retention: Duration::from_secs(24 * 3600),
    max_processing: Duration::from_secs(4),
    reads_own_writes: true,
};

/// The longest that a PSP may ask us to wait.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// The longest text of a PSP that is kept.
const LONGEST_TEXT: usize = 200;

/// The connector.
#[derive(Debug)]
pub struct Simulator {
    client: Client,
    url: String,
    key: Secret,
}

#[derive(Debug, Serialize)]
struct ChargeRequest<'a> {
    reference: String,
    amount: i64,
    currency: &'a str,
    token: &'a str,
    description: &'a str,
}

#[derive(Debug, Deserialize)]
struct ChargeBody {
    id: String,
    status: String,
    amount: i64,
    currency: String,
    idempotency_key: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

#[derive(Debug, Deserialize)]
struct ErrorBody {
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    stored: bool,
}

#[derive(Debug, Deserialize)]
struct ListBody {
    charges: Vec<ChargeBody>,
}

impl Simulator {
    /// A connector to the configured address.
    ///
    /// # Errors
    /// The address is malformed.
    pub fn new(config: &Config) -> Result<Self, florin::host::Fatal> {
        let url = config.psp_url.trim_end_matches('/').to_owned();
        reqwest::Url::parse(&url).map_err(|error| format!("FLORIN_PSP_URL: {error}"))?;
        let client = Client::builder()
            .pool_max_idle_per_host(config.calls + config.inquiries)
            .connect_timeout(Duration::from_secs(2))
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self { client, url, key: config.psp_key.clone() })
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Answer> {
        request.bearer_auth(&self.key.0).send().await.map_err(|error| {
            if error.is_connect() {
                return not_taken(NotTaken::Refused, None, "the connection was not accepted");
            }
            unknown("CONNECTION_LOST", "the connection broke before an answer came")
        })
    }
}

#[tonic::async_trait]
impl Psp for Simulator {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn charge(&self, call: &Call) -> Answer {
        let body = ChargeRequest {
            reference: call.charge_id.to_string(),
            amount: call.amount.minor_units,
            currency: call.amount.currency_code(),
            token: &call.payment_token,
            description: &call.description,
        };
        let request = self
            .client
            .post(format!("{}/v1/charges", self.url))
            .header("Idempotency-Key", &call.idempotency_key)
            .json(&body);
        match self.send(request).await {
            Ok(response) => answer_to_charge(response).await,
            Err(answer) => answer,
        }
    }

    async fn inquire(&self, charge_id: ChargeId, idempotency_key: &str) -> Answer {
        let request =
            self.client.get(format!("{}/v1/charges", self.url)).query(&[("reference", charge_id.to_string())]);
        let response = match self.send(request).await {
            Ok(response) => response,
            Err(answer) => return answer,
        };
        match response.status() {
            StatusCode::OK => match response.json::<ListBody>().await {
                Ok(list) => found(&list.charges, idempotency_key),
                Err(_) => unknown("GARBLED", "the list could not be read"),
            },
            status => refused(status, &response).unwrap_or_else(|| unexpected(status)),
        }
    }
}

async fn answer_to_charge(response: Response) -> Answer {
    let status = response.status();
    if let Some(answer) = refused(status, &response) {
        return answer;
    }
    match status {
        StatusCode::OK => match response.json::<ChargeBody>().await {
            Ok(body) => documented(&body),
            Err(_) => unknown("GARBLED", "the answer could not be read"),
        },
        StatusCode::PAYMENT_REQUIRED => match response.json::<ChargeBody>().await {
            Ok(body) if body.status == "declined" => documented(&body),
            _ => unknown("GARBLED", "a decline could not be read"),
        },
        StatusCode::UNPROCESSABLE_ENTITY => match response.json::<ErrorBody>().await {
            Ok(body) if body.stored => Answer::Rejected { code: plain(&body.code), message: plain(&body.message) },
            _ => unknown("GARBLED", "an error could not be read, or was not stored"),
        },
        StatusCode::CONFLICT => unknown("IN_PROGRESS", "a call with this key is still being processed"),
        status => unexpected(status),
    }
}

/// What a look-up found. Money that moved, or may still move, counts under every key; after that only what is stored
/// under the key in use.
fn found(charges: &[ChargeBody], idempotency_key: &str) -> Answer {
    let listed = ["succeeded", "pending", "declined", "failed"];
    if let Some(other) = charges.iter().find(|charge| !listed.contains(&charge.status.as_str())) {
        return unknown("UNKNOWN_STATUS", &format!("the status {} is not documented", other.status));
    }
    let by_status = |status: &str| charges.iter().find(|charge| charge.status == status);
    let under_key = || charges.iter().find(|charge| charge.idempotency_key == idempotency_key);
    by_status("succeeded").or_else(|| by_status("pending")).or_else(under_key).map_or(Answer::NotFound, documented)
}

/// The table of documented statuses.
fn documented(body: &ChargeBody) -> Answer {
    let psp_reference = plain(&body.id);
    match body.status.as_str() {
        "succeeded" => match body.currency.parse() {
            Ok(currency) => Answer::Succeeded { amount: Money::new(currency, body.amount), psp_reference },
            Err(_) => unknown("GARBLED", "the currency could not be read"),
        },
        "pending" => Answer::Pending { psp_reference },
        "declined" => Answer::Declined {
            reason: decline_reason(&body.code),
            code: plain(&body.code),
            message: plain(&body.message),
            psp_reference,
        },
        "failed" => Answer::Rejected { code: plain(&body.code), message: plain(&body.message) },
        other => unknown("UNKNOWN_STATUS", &format!("the status {other} is not documented")),
    }
}

/// A text of somebody else's, as it can be stored: bounded, without control characters.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(LONGEST_TEXT).collect()
}

fn decline_reason(code: &str) -> &'static str {
    match code {
        "insufficient_funds" => "INSUFFICIENT_FUNDS",
        "expired" => "EXPIRED",
        "suspected_fraud" => "SUSPECTED_FRAUD",
        "invalid_token" => "INVALID_TOKEN",
        "invalid_request" => "REQUEST_REFUSED",
        _ => "DECLINED",
    }
}

/// Answers by which the PSP did not take the call.
fn refused(status: StatusCode, response: &Response) -> Option<Answer> {
    match status {
        StatusCode::TOO_MANY_REQUESTS => {
            let seconds = response
                .headers()
                .get("retry-after")
                .and_then(|value| value.to_str().ok())
                .and_then(|text| text.parse().ok());
            Some(not_taken(
                NotTaken::Throttled,
                seconds.map(|seconds: u64| Duration::from_secs(seconds).min(LONGEST_WAIT)),
                "the PSP throttles",
            ))
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Some(not_taken(NotTaken::Forbidden, None, "the PSP refuses our credentials"))
        }
        _ => None,
    }
}

fn unexpected(status: StatusCode) -> Answer {
    let code = if status.is_server_error() { "HTTP_5XX" } else { "UNEXPECTED_STATUS" };
    unknown(code, &format!("the PSP answered {status}"))
}

fn not_taken(why: NotTaken, retry_after: Option<Duration>, message: &str) -> Answer {
    Answer::NotTaken { why, retry_after, message: message.to_owned() }
}

fn unknown(code: &'static str, message: &str) -> Answer {
    Answer::Unknown { code, message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(status: &str, key: &str) -> ChargeBody {
        ChargeBody {
            id: "sim_1".into(),
            status: status.into(),
            amount: 100,
            currency: "EUR".into(),
            idempotency_key: key.into(),
            code: "c".into(),
            message: String::new(),
        }
    }

    #[test]
    fn what_the_table_does_not_list_is_unknown() {
        assert!(matches!(documented(&body("refunding", "k")), Answer::Unknown { .. }));
        assert!(matches!(found(&[body("declined", "k"), body("refunding", "k")], "k"), Answer::Unknown { .. }));
        assert!(matches!(unexpected(StatusCode::IM_A_TEAPOT), Answer::Unknown { code: "UNEXPECTED_STATUS", .. }));
        assert!(matches!(unexpected(StatusCode::BAD_GATEWAY), Answer::Unknown { code: "HTTP_5XX", .. }));
    }

    #[test]
    fn money_that_moved_outweighs_what_failed_before() {
        assert!(matches!(found(&[body("failed", "1"), body("succeeded", "2")], "2"), Answer::Succeeded { .. }));
        assert!(matches!(found(&[body("succeeded", "1"), body("failed", "2")], "2"), Answer::Succeeded { .. }));
        assert!(matches!(found(&[body("failed", "1"), body("pending", "2")], "2"), Answer::Pending { .. }));
        assert!(matches!(found(&[body("failed", "1")], "1"), Answer::Rejected { .. }));
        assert_eq!(found(&[], "1"), Answer::NotFound);
    }

    #[test]
    fn an_error_of_an_earlier_key_says_nothing_about_this_one() {
        // The call under key 2 may still be being processed: taking key 1's error for its answer would open a third
        // key, and charge twice.
        assert_eq!(found(&[body("failed", "1")], "2"), Answer::NotFound);
    }
}
