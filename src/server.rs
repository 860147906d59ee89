//! The gRPC server, set up once: health, reflection, limits, deadlines, load shedding, request ids, traces, metrics.

use std::collections::HashMap;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::BodyExt as _;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::{Layer, Service};
use tracing::Instrument as _;

use crate::auth::{CALL, Call};
use crate::error::{Error, REQUEST_ID, Reason};
use crate::health::Health;
use crate::policy::{self, Policy};
use crate::telemetry;

/// The largest request: a payment of 100 lines has about 20 KiB.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// What a call may take that came without a deadline: more than the longest `wait`.
const MAX_CALL: Duration = Duration::from_secs(10);
/// Trailing metadata of a replayed answer.
pub const REPLAYED: &str = "idempotent-replayed";

/// What every call passes through.
#[derive(Debug, Clone)]
pub struct Edge {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    merchant: String,
    calls: Arc<Semaphore>,
    policies: HashMap<String, Option<Policy>>,
    draining: CancellationToken,
}

impl Edge {
    /// An edge that lets `max_calls` calls in at once, until it drains.
    #[must_use]
    pub fn new(merchant: &str, max_calls: usize, draining: CancellationToken) -> Self {
        let policies = policy::policies(&policy::descriptors());
        let calls = Arc::new(Semaphore::new(max_calls));
        Self { shared: Arc::new(Shared { merchant: merchant.to_owned(), calls, policies, draining }) }
    }
}

impl<S> Layer<S> for Edge {
    type Service = EdgeService<S>;

    fn layer(&self, inner: S) -> EdgeService<S> {
        EdgeService { inner, shared: Arc::clone(&self.shared) }
    }
}

/// A service behind the edge.
#[derive(Debug, Clone)]
pub struct EdgeService<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Body>> for EdgeService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Send,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let Some(policy) = self.shared.policies.get(&path) else {
            // Health and reflection are not Florin's own: no call context, and never shed.
            return Box::pin(self.inner.call(request));
        };
        let request_id = request_id(request.headers());
        let span =
            tracing::info_span!("rpc", otel.name = path, requestId = request_id, traceId = tracing::field::Empty);
        telemetry::continue_trace(&span, header(request.headers(), "traceparent"));
        let call = call(&self.shared.merchant, request.headers());
        let admitted = self.shared.admit(policy.as_ref());
        let work = admitted.map(|permit| (permit, AssertUnwindSafe(self.inner.call(request)).catch_unwind()));
        let answer = async move {
            let started = tokio::time::Instant::now();
            let response = match work {
                Err(error) => Status::from(error).into_http(),
                Ok((_permit, work)) => match tokio::time::timeout(MAX_CALL, CALL.scope(call, work)).await {
                    Ok(Ok(Ok(response))) => response,
                    Ok(Err(_panic)) => Status::from(Error::internal("a handler panicked")).into_http(),
                    Err(_elapsed) => {
                        Status::from(Error::new(Reason::DeadlineExceeded, "took longer than 10 s")).into_http()
                    }
                },
            };
            record(&path, &response, started.elapsed());
            Ok(finish(response))
        };
        Box::pin(REQUEST_ID.scope(request_id, answer).instrument(span))
    }
}

impl Shared {
    /// Lets a call in, or says why not.
    fn admit(&self, policy: Option<&Policy>) -> Result<tokio::sync::OwnedSemaphorePermit, Error> {
        if policy.is_none() {
            return Err(Error::internal("the RPC has no policy"));
        }
        if self.draining.is_cancelled() {
            return Err(Error::new(Reason::ShuttingDown, "the service is stopping; another replica will answer"));
        }
        Arc::clone(&self.calls)
            .try_acquire_owned()
            .map_err(|_| Error::new(Reason::Overloaded, "more calls under way than can be done in time; retry"))
    }
}

fn call(merchant: &str, headers: &HeaderMap) -> Call {
    let deadline = header(headers, "grpc-timeout").and_then(grpc_timeout);
    Call {
        merchant: merchant.to_owned(),
        // A header that is no visible ASCII is kept as one that no key may be, so that its refusal names it.
        idempotency_key: headers
            .get("idempotency-key")
            .map(|value| value.to_str().map_or_else(|_| "\u{fffd}".to_owned(), ToOwned::to_owned)),
        deadline: deadline.and_then(|timeout| tokio::time::Instant::now().checked_add(timeout)),
    }
}

/// A caller's own request id if it is short and plain, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let plain = |id: &&str| !id.is_empty() && id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_graphic());
    header(headers, "x-request-id").filter(plain).map_or_else(|| uuid::Uuid::now_v7().to_string(), ToOwned::to_owned)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// `<digits><H|M|S|m|u|n>`, from the gRPC protocol.
fn grpc_timeout(value: &str) -> Option<Duration> {
    let (number, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number.checked_mul(3600)?)),
        "M" => Some(Duration::from_secs(number.checked_mul(60)?)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

fn record(path: &str, response: &Response<Body>, took: Duration) {
    let code = header(response.headers(), "grpc-status").unwrap_or("0").to_owned();
    metrics::counter!("florin_rpc_total", "rpc" => path.to_owned(), "code" => code).increment(1);
    metrics::histogram!("florin_rpc_seconds", "rpc" => path.to_owned()).record(took.as_secs_f64());
}

/// Adds the request's id, and says that an answer is a replay in the trailing metadata too.
fn finish(mut response: Response<Body>) -> Response<Body> {
    let request_id = REQUEST_ID.try_with(Clone::clone).unwrap_or_default();
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert("x-request-id", value);
    }
    if !response.headers().contains_key(REPLAYED) {
        return response;
    }
    response.map(|body| {
        Body::new(body.map_frame(|mut frame| {
            if let Some(trailers) = frame.trailers_mut() {
                trailers.insert(REPLAYED, HeaderValue::from_static("true"));
            }
            frame
        }))
    })
}

/// Serves until `stop`, then says GOAWAY and lets calls under way finish.
///
/// # Errors
/// The listener broke, or reflection could not be built.
pub async fn serve(
    listener: TcpListener,
    edge: Edge,
    routes: Routes,
    health: Health,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (reporter, health_service) = tonic_health::server::health_reporter();
    tokio::spawn(report_health(reporter, health));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(crate::proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    // tonic replaces hyper's safe HTTP/2 limits by none unless they are given: reference, reliability §0.5.
    tonic::transport::Server::builder()
        .max_concurrent_streams(200)
        .http2_max_pending_accept_reset_streams(Some(20))
        .http2_max_local_error_reset_streams(Some(1024))
        .http2_max_header_list_size(16 * 1024)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .tcp_nodelay(true)
        .layer(edge)
        .add_routes(routes)
        .add_service(health_service)
        .add_service(reflection)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.cancelled_owned())
        .await?;
    Ok(())
}

async fn report_health(reporter: tonic_health::server::HealthReporter, health: Health) {
    let mut changes = health.changes();
    loop {
        let status = if *changes.borrow_and_update() {
            tonic_health::ServingStatus::Serving
        } else {
            tonic_health::ServingStatus::NotServing
        };
        reporter.set_service_status("", status).await;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_as_grpc_writes_them() {
        assert_eq!(grpc_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(grpc_timeout("2S"), Some(Duration::from_secs(2)));
        for wrong in ["", "S", "2x", "-1S", "é"] {
            assert_eq!(grpc_timeout(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_callers_request_id_is_kept_if_it_is_plain() {
        let mut headers = HeaderMap::new();
        headers.insert("x-request-id", HeaderValue::from_static("req-1"));
        assert_eq!(request_id(&headers), "req-1");
        headers.insert("x-request-id", HeaderValue::from_static("two words"));
        assert_ne!(request_id(&headers), "two words");
    }
}
