//! balance-svc folds the journal into balances, and answers them.

pub mod balance;
pub mod cached;
pub mod config;
pub mod consumer;
pub mod error;
pub mod rebuild;
pub mod service;
pub mod store;
pub mod wire;

use std::sync::Arc;

use florin::cache::Cache;
use florin::host::{Fatal, Host};
use florin::proto::balance::v1::balance_service_server::BalanceServiceServer;
use florin::server::MAX_REQUEST_BYTES;
use sqlx::migrate::Migrator;
use tonic::service::Routes;

use crate::cached::Cached;
use crate::config::Config;
use crate::consumer::Entries;
use crate::service::Balances;
use crate::store::Store;

/// Name of the service.
pub const SERVICE: &str = "balance-svc";
/// The service's own migrations.
pub static MIGRATOR: Migrator = sqlx::migrate!("./migrations");

/// The service, built and not yet running.
#[derive(Debug)]
pub struct App {
    host: Host,
    balances: Balances,
}

impl App {
    /// Binds the ports and wires the parts together.
    ///
    /// # Errors
    /// A port is taken or a setting cannot be used.
    pub async fn build(config: Config) -> Result<Self, Fatal> {
        let mut host = Host::build(SERVICE, config.common, &MIGRATOR, true).await?;
        let store = Store::new(host.pool.clone());
        let cache = Cache::new(&config.redis_url).map_err(|error| format!("FLORIN_REDIS_URL: {error}"))?;
        let cached = Cached::new(cache.clone(), store.clone());
        host.health.needs("redis", false);
        host.spawn(host.health.clone().watch_until("redis", host.shutdown.intake.clone(), move || {
            let cache = cache.clone();
            async move { cache.ping().await }
        }));
        host.consume(consumer::SPEC, Arc::new(Entries::new(store.clone(), cached.clone(), config.publish_changes)));
        Ok(Self { host, balances: Balances { store, cached } })
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    /// A server broke.
    pub async fn run(self) -> Result<(), Fatal> {
        let service = BalanceServiceServer::new(self.balances).max_decoding_message_size(MAX_REQUEST_BYTES);
        self.host.run(Routes::new(service)).await
    }
}
