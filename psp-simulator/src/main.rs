//! A payment service provider that is not one: speaks HTTP/JSON as real ones do, keeps a durable book, and misbehaves as
//! it is told, repeatably.

mod api;
mod behaviour;
mod book;
mod scenario;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;

use crate::api::Psp;
use crate::behaviour::Rates;
use crate::book::Book;
use crate::scenario::Scenario;

/// A PSP to try and to test against.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Options {
    /// Address and port to serve on.
    #[arg(long, env = "SIMULATOR_LISTEN")]
    listen: SocketAddr,
    /// Folder of the book.
    #[arg(long, env = "SIMULATOR_DATA")]
    data: PathBuf,
    /// What tok_random meets: NORMAL, PEAK, DEGRADED or BEST.
    #[arg(long, env = "SIMULATOR_SCENARIO", default_value = "NORMAL")]
    scenario: Scenario,
    /// Behaviours by rate for every charge, in percent: decline=5,garbage=1,acts_then_hangs=2
    #[arg(long, env = "SIMULATOR_RATES", default_value = "")]
    rates: Rates,
    /// The same seed and the same charges make the same outcomes.
    #[arg(long, env = "SIMULATOR_SEED", default_value_t = 1)]
    seed: u64,
    /// The secret key that callers have to present.
    #[arg(long, env = "SIMULATOR_KEY", default_value = "sk_test_florin", hide_env_values = true)]
    key: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match serve(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("psp-simulator: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: Options) -> Result<(), String> {
    let Options { listen, data, scenario, rates, seed, key } = options;
    let book = Book::open(&data).map_err(|error| format!("the book in {}: {error}", data.display()))?;
    let listener = tokio::net::TcpListener::bind(listen).await.map_err(|error| format!("{listen}: {error}"))?;
    let psp = Arc::new(Psp { book, scenario, rates, seed, key });
    psp.resume();
    axum::serve(listener, api::routes(psp)).with_graceful_shutdown(stop()).await.map_err(|error| error.to_string())
}

async fn stop() {
    use tokio::signal::unix::{SignalKind, signal};
    if let Ok(mut terminate) = signal(SignalKind::terminate()) {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    }
}
