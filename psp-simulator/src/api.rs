//! The PSP's HTTP API: charge, look up by reference, and the book.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::behaviour::{Behaviour, Draw, Rates, choose};
use crate::book::{Book, Charge, Key};
use crate::scenario::Scenario;

/// How long a call hangs that is never answered: longer than anybody waits.
const HANG: Duration = Duration::from_secs(60);
/// After how long a late charge acts: within the 4 s that are declared as the longest processing.
const LATE: Duration = Duration::from_millis(3_500);
/// Charges in one page of the book at most.
const PAGE: usize = 1_000;

/// The PSP.
#[derive(Debug)]
pub struct Psp {
    /// What it has done.
    pub book: Book,
    /// What `tok_random` meets.
    pub scenario: Scenario,
    /// Behaviours by rate.
    pub rates: Rates,
    /// Of the run.
    pub seed: u64,
    /// The callers' secret.
    pub key: String,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
struct ChargeRequest {
    reference: String,
    amount: i64,
    currency: String,
    token: String,
    #[serde(default)]
    description: String,
}

#[derive(Debug, Deserialize)]
struct Lookup {
    reference: String,
}

#[derive(Debug, Deserialize)]
struct Pages {
    #[serde(default)]
    after: u64,
}

/// The routes.
pub fn routes(psp: Arc<Psp>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/v1/charges", post(charge).get(look_up))
        .route("/v1/book", get(book))
        .with_state(psp)
}

impl Psp {
    /// Goes on deciding what was pending when the process ended.
    pub fn resume(self: &Arc<Self>) {
        for charge in self.book.undecided() {
            self.decide_later(charge);
        }
    }

    fn decide_later(self: &Arc<Self>, charge: Charge) {
        let psp = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(charge.decide_at.saturating_sub(now_millis()))).await;
            let executed = charge.decision == "succeeded";
            let code = if executed { String::new() } else { "card_declined".to_owned() };
            psp.book.write(Charge { status: charge.decision.clone(), executed, code, decide_at: 0, ..charge }).await;
        });
    }

    /// Why a caller is not let in.
    fn refuses(&self, headers: &HeaderMap) -> Option<Response> {
        let presented = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        if presented == Some(format!("Bearer {}", self.key).as_str()) {
            return None;
        }
        Some(error(StatusCode::UNAUTHORIZED, "invalid_api_key", "the secret key is wrong or missing", false))
    }

    /// Writes an outcome of this request under its key.
    async fn store(&self, key: &str, request: &ChargeRequest, outcome: Outcome) -> Charge {
        let Outcome { status, code, message, amount, decide_in, decision } = outcome;
        let charge = Charge {
            id: String::new(),
            sequence: 0,
            reference: request.reference.clone(),
            idempotency_key: key.to_owned(),
            executed: status == "succeeded",
            status: status.to_owned(),
            amount: amount.unwrap_or(request.amount),
            currency: request.currency.clone(),
            code: code.to_owned(),
            message: message.to_owned(),
            decide_at: decide_in.map_or(0, |seconds| now_millis() + seconds * 1_000),
            decision: decision.to_owned(),
            fingerprint: fingerprint(request),
        };
        self.book.write(charge).await
    }
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, Default)]
struct Outcome {
    status: &'static str,
    code: &'static str,
    message: &'static str,
    amount: Option<i64>,
    decide_in: Option<u64>,
    decision: &'static str,
}

impl Outcome {
    fn succeeded() -> Self {
        Self { status: "succeeded", ..Self::default() }
    }

    fn declined(code: &'static str, message: &'static str) -> Self {
        Self { status: "declined", code, message, ..Self::default() }
    }
}

async fn charge(State(psp): State<Arc<Psp>>, headers: HeaderMap, Json(request): Json<ChargeRequest>) -> Response {
    if let Some(refusal) = psp.refuses(&headers) {
        return refusal;
    }
    let Some(key) = headers.get("idempotency-key").and_then(|value| value.to_str().ok()).map(ToOwned::to_owned) else {
        return error(StatusCode::BAD_REQUEST, "missing_idempotency_key", "Idempotency-Key is required", false);
    };
    let call = match psp.book.begin(&key, &request.reference) {
        Ok(call) => call,
        Err(Key::InProgress) => {
            return error(StatusCode::CONFLICT, "key_in_progress", "a call with this key is being processed", false);
        }
        Err(Key::Stored(stored)) if stored.fingerprint != fingerprint(&request) => {
            return error(StatusCode::BAD_REQUEST, "key_reused", "the key was used with another request", false);
        }
        Err(Key::Stored(stored)) => return answer(&stored),
    };
    // What happens does not depend on whether the caller stays: only the answer does.
    let subject = format!("{}|{}", request.description, request.amount);
    let draw = Draw { seed: psp.seed, subject: &subject, call };
    let (behaviour, latency) = choose(&request.token, psp.scenario, &psp.rates, draw);
    let work = tokio::spawn(async move {
        tokio::time::sleep(latency).await;
        perform(psp, key, request, behaviour).await
    });
    work.await.unwrap_or_else(|_| error(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the call failed", false))
}

async fn perform(psp: Arc<Psp>, key: String, request: ChargeRequest, behaviour: Behaviour) -> Response {
    match behaviour {
        Behaviour::Succeeds => answer(&psp.store(&key, &request, Outcome::succeeded()).await),
        Behaviour::Declines => {
            answer(&psp.store(&key, &request, Outcome::declined("card_declined", "the issuer declined")).await)
        }
        Behaviour::DeclinesFunds => answer(
            &psp.store(
                &key,
                &request,
                Outcome::declined("insufficient_funds", "the account does not cover the amount"),
            )
            .await,
        ),
        Behaviour::RefusesToken => {
            answer(&psp.store(&key, &request, Outcome::declined("invalid_token", "the token is unknown")).await)
        }
        Behaviour::Transient => {
            let outcome = Outcome {
                status: "failed",
                code: "processing_error",
                message: "the acquirer had an error",
                ..Outcome::default()
            };
            answer(&psp.store(&key, &request, outcome).await)
        }
        Behaviour::Hangs => {
            psp.book.release(&key);
            hang().await
        }
        Behaviour::ActsThenHangs => {
            psp.store(&key, &request, Outcome::succeeded()).await;
            hang().await
        }
        Behaviour::ActsThenResets => {
            psp.store(&key, &request, Outcome::succeeded()).await;
            reset()
        }
        Behaviour::ActsLate => {
            tokio::time::sleep(LATE).await;
            psp.store(&key, &request, Outcome::succeeded()).await;
            hang().await
        }
        Behaviour::Pending { seconds } => pending(&psp, &key, &request, seconds, "succeeded").await,
        Behaviour::PendingThenDeclined { seconds } => pending(&psp, &key, &request, seconds, "declined").await,
        Behaviour::Garbage => {
            psp.store(&key, &request, Outcome::succeeded()).await;
            (StatusCode::OK, "<html><title>502 Bad Gateway</title>").into_response()
        }
        Behaviour::Throttles => {
            psp.book.release(&key);
            let body = Json(json!({ "code": "rate_limited", "message": "too many requests", "stored": false }));
            (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "1")], body).into_response()
        }
        Behaviour::Down => {
            psp.book.release(&key);
            error(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "the service is down", false)
        }
        Behaviour::WrongAmount => {
            let outcome = Outcome { amount: Some(request.amount + 1), ..Outcome::succeeded() };
            answer(&psp.store(&key, &request, outcome).await)
        }
    }
}

async fn pending(psp: &Arc<Psp>, key: &str, request: &ChargeRequest, seconds: u64, decision: &'static str) -> Response {
    let outcome = Outcome { status: "pending", decide_in: Some(seconds), decision, ..Outcome::default() };
    let charge = psp.store(key, request, outcome).await;
    psp.decide_later(charge.clone());
    answer(&charge)
}

async fn look_up(State(psp): State<Arc<Psp>>, headers: HeaderMap, Query(lookup): Query<Lookup>) -> Response {
    if let Some(refusal) = psp.refuses(&headers) {
        return refusal;
    }
    Json(json!({ "charges": psp.book.by_reference(&lookup.reference) })).into_response()
}

async fn book(State(psp): State<Arc<Psp>>, headers: HeaderMap, Query(pages): Query<Pages>) -> Response {
    if let Some(refusal) = psp.refuses(&headers) {
        return refusal;
    }
    Json(json!({ "charges": psp.book.after(pages.after, PAGE) })).into_response()
}

/// The stored answer, errors too, as it was given the first time.
fn answer(charge: &Charge) -> Response {
    match charge.status.as_str() {
        "declined" => (StatusCode::PAYMENT_REQUIRED, Json(charge)).into_response(),
        "failed" => error(StatusCode::UNPROCESSABLE_ENTITY, &charge.code, &charge.message, true),
        _ => Json(charge).into_response(),
    }
}

fn error(status: StatusCode, code: &str, message: &str, stored: bool) -> Response {
    (status, Json(json!({ "code": code, "message": message, "stored": stored }))).into_response()
}

async fn hang() -> Response {
    tokio::time::sleep(HANG).await;
    reset()
}

/// A body that breaks off: the connection is reset in the middle of the answer.
fn reset() -> Response {
    let broken = futures::stream::iter([Err::<&'static str, _>(std::io::Error::other("reset"))]);
    (StatusCode::OK, Body::from_stream(broken)).into_response()
}

fn fingerprint(request: &ChargeRequest) -> String {
    format!("{}|{}|{}|{}", request.reference, request.amount, request.currency, request.token)
}

fn now_millis() -> u64 {
    #[allow(clippy::disallowed_methods, reason = "somebody else's system has its own clock")]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
