//! psp-worker executes charges at payment service providers: attempts, retries, inquiries, circuit breaking.

pub mod alarm;
pub mod attempt;
pub mod breaker;
pub mod config;
pub mod consumer;
pub mod error;
pub mod executor;
pub mod psp;
pub mod service;
pub mod simulator;
pub mod store;
pub mod wire;

use std::sync::Arc;

use florin::cache::Cache;
use florin::host::{Fatal, Host};
use florin::proto::psp::v1::psp_service_server::PspServiceServer;
use florin::server::MAX_REQUEST_BYTES;
use sqlx::migrate::Migrator;
use tonic::service::Routes;

use crate::alarm::Alarm;
use crate::config::Config;
use crate::consumer::Charges;
use crate::executor::Executor;
use crate::service::ChargeReads;
use crate::simulator::Simulator;
use crate::store::Store;

/// Name of the service.
pub const SERVICE: &str = "psp-worker";
/// The service's own migrations.
pub static MIGRATOR: Migrator = sqlx::migrate!("./migrations");

/// The service, built and not yet running.
#[derive(Debug)]
pub struct App {
    host: Host,
    reads: ChargeReads,
}

impl App {
    /// Binds the ports and wires the parts together.
    ///
    /// # Errors
    /// A port is taken or a setting cannot be used.
    pub async fn build(config: Config) -> Result<Self, Fatal> {
        let mut host = Host::build(SERVICE, config.common.clone(), &MIGRATOR, true).await?;
        let store = Store::new(host.pool.clone(), host.relay.clone(), config.leases());
        let cache = Cache::new(&config.redis_url).map_err(|error| format!("FLORIN_REDIS_URL: {error}"))?;
        let psp = Arc::new(Simulator::new(&config)?);
        let alarm = Alarm::new(cache.clone());
        let executor =
            Executor::new(&config, store.clone(), psp, alarm.clone(), Arc::clone(&host.clock), host.health.clone());

        host.health.needs("redis", false);
        host.spawn(host.health.clone().watch_until("redis", host.shutdown.intake.clone(), move || {
            let cache = cache.clone();
            async move { cache.ping().await }
        }));
        host.consume(consumer::SPEC, Arc::new(Charges::new(store.clone(), executor.clone(), config.psp_account)));
        host.spawn(alarm.run(executor.hints(), host.shutdown.intake.clone()));
        host.spawn(executor.run(host.shutdown.intake.clone()));
        Ok(Self { host, reads: ChargeReads { store } })
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    /// A server broke.
    pub async fn run(self) -> Result<(), Fatal> {
        let service = PspServiceServer::new(self.reads).max_decoding_message_size(MAX_REQUEST_BYTES);
        self.host.run(Routes::new(service)).await
    }
}
