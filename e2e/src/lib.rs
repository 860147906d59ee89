//! Tests of the whole platform over real processes: a stack of real parts, and clients of the contracts.

use std::time::Duration;

use cli::connection::Connection;
use florin::proto::common::v1::Money;
use florin::proto::payment::v1 as payment;
use tempfile::TempDir;
use tonic::Request;
use xtask::services::Options;
use xtask::stack::Stack;

/// How long a level may take to be reached.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A stack with its own folder, stopped and removed when it is dropped.
#[derive(Debug)]
pub struct Platform {
    /// The stack.
    pub stack: Stack,
    // Dropped after the stack, which still writes into it.
    _folder: TempDir,
}

impl Platform {
    /// Starts a stack whose PSP is retried fast. Blocks: call it outside of async code.
    ///
    /// # Panics
    /// It does not start; the message says why.
    #[must_use]
    pub fn start(mut options: Options) -> Self {
        for (name, value) in
            [("FLORIN_RETRY_BASE_MS", "100"), ("FLORIN_PSP_DEADLINE_MS", "1000"), ("FLORIN_PSP_CALLS", "256")]
        {
            options.settings.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let stack = Stack::start(folder.path(), options).unwrap_or_else(|error| panic!("{error}"));
        Self { stack, _folder: folder }
    }

    /// Its addresses, for clients.
    #[must_use]
    pub fn connection(&self) -> Connection {
        Connection::of(self.stack.addresses.clone())
    }
}

/// An order of one seller for `units` minor units of EUR.
#[must_use]
pub fn order(order_id: &str, token: &str, units: i64) -> payment::CreatePaymentRequest {
    let money = || Some(Money { currency_code: "EUR".to_owned(), minor_units: units });
    payment::CreatePaymentRequest {
        order_id: order_id.to_owned(),
        buyer_id: "buyer-1".to_owned(),
        total: money(),
        payment_source: Some(payment::PaymentSource { token: token.to_owned() }),
        lines: vec![payment::PaymentLine {
            seller_id: "alice".to_owned(),
            amount: money(),
            seller_reference: String::new(),
        }],
        ..Default::default()
    }
}

/// The request under this idempotency key.
///
/// # Panics
/// The key is no header value.
pub fn keyed<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("idempotency-key", key.parse().expect("a header value"));
    request
}

/// Looks again and again until `look` finds something.
///
/// # Panics
/// Nothing was found in time.
pub async fn eventually<T, F, Fut>(what: &str, look: F) -> T
where
    F: Fn() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < until, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
