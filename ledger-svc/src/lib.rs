//! ledger-svc keeps the double-entry journal.

pub mod config;
pub mod consumer;
pub mod error;
pub mod posting;
pub mod service;
pub mod store;
pub mod wire;

use std::sync::Arc;

use florin::host::{Fatal, Host};
use florin::proto::ledger::v1::ledger_service_server::LedgerServiceServer;
use florin::server::MAX_REQUEST_BYTES;
use sqlx::migrate::Migrator;
use tonic::service::Routes;

use crate::config::Config;
use crate::consumer::Captures;
use crate::service::Ledger;
use crate::store::Store;

/// Name of the service.
pub const SERVICE: &str = "ledger-svc";
/// The service's own migrations.
pub static MIGRATOR: Migrator = sqlx::migrate!("./migrations");

/// The service, built and not yet running.
#[derive(Debug)]
pub struct App {
    host: Host,
    ledger: Ledger,
}

impl App {
    /// Binds the ports and wires the parts together.
    ///
    /// # Errors
    /// A port is taken or a setting cannot be used.
    pub async fn build(config: Config) -> Result<Self, Fatal> {
        let mut host = Host::build(SERVICE, config.common, &MIGRATOR, true).await?;
        let store = Store::new(host.pool.clone());
        host.consume(consumer::SPEC, Arc::new(Captures::new(store.clone())));
        let ledger = Ledger { store, clock: Arc::clone(&host.clock) };
        Ok(Self { host, ledger })
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    /// A server broke.
    pub async fn run(self) -> Result<(), Fatal> {
        let service = LedgerServiceServer::new(self.ledger).max_decoding_message_size(MAX_REQUEST_BYTES);
        self.host.run(Routes::new(service)).await
    }
}
