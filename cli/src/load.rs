//! Pays many orders through a stack and shows what became of them.

mod orders;
mod summary;

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::Instant;
use tonic::{Code, Request};
use uuid::Uuid;

use crate::Result;
use crate::arguments::LoadOptions;
use crate::audit::{self, Acknowledged};
use crate::connection::{Connection, refused};
use crate::output::Output;

pub use summary::{Progress, Summary};

/// Between two looks at the progress.
const PERIOD: Duration = Duration::from_millis(250);
/// Between two tries of a call that was not answered.
const RETRY: Duration = Duration::from_millis(200);
/// How long a call is tried again: the stack may be crashing on purpose.
const CALL_PATIENCE: Duration = Duration::from_secs(60);
/// How long the audit may wait for what is on its way.
const SETTLE: Duration = Duration::from_secs(60);

/// Pays, waits for the last balance, prints, audits. `false`: the audit found a violation.
///
/// # Errors
/// The stack does not answer, or stands still.
pub async fn command(connection: &Connection, output: Output, options: LoadOptions) -> Result<bool> {
    let before = Progress::read(connection).await?;
    let started = Instant::now();
    let run = pay_all(connection, &options, &before).await?;
    let elapsed = started.elapsed();
    let report = audit::audit(connection, &run, SETTLE).await?;
    let summary = Summary::gather(connection, &run, elapsed, report).await?;
    if let Some(path) = &options.report {
        let text = serde_json::to_string_pretty(&summary).map_err(|error| error.to_string())?;
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    if output.json {
        println!("{}", serde_json::to_string_pretty(&summary).map_err(|error| error.to_string())?);
    } else {
        summary.show(connection).await?;
    }
    Ok(summary.audit.clean)
}

/// Creates all orders and waits until each is final and in the balances. Answers what was acknowledged.
///
/// # Errors
/// A call is refused, or nothing moves any more.
pub async fn pay_all(connection: &Connection, options: &LoadOptions, before: &Progress) -> Result<Vec<Acknowledged>> {
    let accepted = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&accepted);
    let run = Uuid::now_v7();
    let options = options.clone();
    let connection_of = connection.clone();
    let orders = options.orders;
    let patience = Duration::from_secs(options.patience);
    let creating = tokio::spawn(async move {
        let calls = futures::stream::iter(0..options.orders).map(|number| {
            let (connection, counter, options) = (connection_of.clone(), Arc::clone(&counter), options.clone());
            let client = connection.payments();
            async move {
                let request = orders::order(options.seed, number, &options.token);
                let answer = create(client?, request, format!("{run}-{number}")).await;
                counter.fetch_add(1, Ordering::Relaxed);
                answer
            }
        });
        calls.buffer_unordered(options.concurrency).collect::<Vec<Result<Acknowledged>>>().await
    });
    follow(connection, before, &accepted, orders, patience).await?;
    let answers = creating.await.map_err(|error| error.to_string())?;
    answers.into_iter().collect()
}

/// Creates one payment; a call without an answer is repeated under the same key.
async fn create(
    mut client: florin::proto::payment::v1::payment_service_client::PaymentServiceClient<tonic::transport::Channel>,
    order: florin::proto::payment::v1::CreatePaymentRequest,
    key: String,
) -> Result<Acknowledged> {
    let until = Instant::now() + CALL_PATIENCE;
    loop {
        let mut request = Request::new(order.clone());
        request.set_timeout(Duration::from_secs(10));
        request.metadata_mut().insert("idempotency-key", key.parse().map_err(|_| "the key is no header".to_owned())?);
        match client.create_payment(request).await {
            Ok(answer) => {
                let payment = answer.into_inner();
                let total = payment.total.unwrap_or_default();
                return Ok(Acknowledged {
                    payment_id: payment.payment_id,
                    currency: total.currency_code,
                    total: total.minor_units,
                });
            }
            Err(status) if Instant::now() < until && may_be_repeated(status.code()) => tokio::time::sleep(RETRY).await,
            Err(status) => return Err(refused(status)),
        }
    }
}

/// Whether a call may have happened or may happen if it is made again. Its key makes a repetition harmless.
fn may_be_repeated(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::ResourceExhausted
            | Code::Unknown
            | Code::Cancelled
            | Code::Internal
    )
}

/// Shows a progress bar until everything is in the balances.
async fn follow(
    connection: &Connection,
    before: &Progress,
    accepted: &AtomicUsize,
    orders: u32,
    patience: Duration,
) -> Result<()> {
    let shown = std::io::stderr().is_terminal();
    let mut last = Progress::default();
    let mut moved = Instant::now();
    loop {
        let done = accepted.load(Ordering::Relaxed);
        // While a part is down there is nothing to read; patience decides how long.
        if let Ok(now) = Progress::read(connection).await {
            let now = now.since(before);
            if now != last {
                moved = Instant::now();
                last = now;
            }
        }
        if shown {
            eprint!("\r{}", last.bar(done, orders));
            let _ = std::io::stderr().flush();
        }
        if done == orders as usize && last.is_complete(orders) {
            eprintln!("{}{}", if shown { "\r" } else { "" }, last.bar(done, orders));
            return Ok(());
        }
        if moved.elapsed() > patience {
            return Err(format!("nothing has moved for {} s: {}", patience.as_secs(), last.bar(done, orders)));
        }
        tokio::time::sleep(PERIOD).await;
    }
}
