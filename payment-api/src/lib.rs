//! payment-api accepts payments, owns their state, and rolls the sellers' results up.

pub mod config;
pub mod consumer;
pub mod error;
pub mod fee;
pub mod payment;
pub mod request;
pub mod service;
pub mod store;
pub mod sweep;
pub mod watch;
pub mod wire;

use std::sync::Arc;

use florin::batch::{Batcher, Limits};
use florin::host::{Fatal, Host};
use florin::proto::payment::v1::payment_service_server::PaymentServiceServer;
use florin::server::MAX_REQUEST_BYTES;
use sqlx::migrate::Migrator;
use tonic::service::Routes;

use crate::config::Config;
use crate::consumer::Results;
use crate::fee::Schedules;
use crate::service::Payments;
use crate::store::Store;
use crate::watch::Watches;

/// Name of the service.
pub const SERVICE: &str = "payment-api";
/// The service's own migrations.
pub static MIGRATOR: Migrator = sqlx::migrate!("./migrations");

/// Payments created in one transaction at most, and payments that may wait for one.
const CREATE: Limits = Limits { batch: 128, queue: 4096 };

/// The service, built and not yet running.
#[derive(Debug)]
pub struct App {
    host: Host,
    payments: Payments,
}

impl App {
    /// Binds the ports and wires the parts together.
    ///
    /// # Errors
    /// A port is taken or a setting cannot be used.
    pub async fn build(config: Config) -> Result<Self, Fatal> {
        // Accepting goes on while NATS is down: payment-api is ready when its Postgres is.
        let mut host = Host::build(SERVICE, config.common, &MIGRATOR, false).await?;
        let store = Store::new(host.pool.clone(), host.relay.clone(), config.overdue_after);
        let watches = Watches::default();
        let schedules = Schedules::default();

        host.consume(consumer::SPEC, Arc::new(Results::new(store.clone(), watches.clone())));
        host.spawn(watches.clone().run(store.clone(), host.shutdown.intake.clone()));
        host.spawn(schedules.clone().run(store.clone(), host.shutdown.intake.clone()));
        host.spawn(sweep::run(store.clone(), host.shutdown.intake.clone()));

        let creator = store.clone();
        let create = Batcher::start(CREATE, move |batch| {
            let store = creator.clone();
            async move { store.create(batch).await }
        });
        let payments = Payments {
            store,
            create,
            watches,
            schedules,
            clock: Arc::clone(&host.clock),
            psp: config.psp,
            draining: host.shutdown.draining.clone(),
        };
        Ok(Self { host, payments })
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    /// A server broke.
    pub async fn run(self) -> Result<(), Fatal> {
        let service = PaymentServiceServer::new(self.payments).max_decoding_message_size(MAX_REQUEST_BYTES);
        self.host.run(Routes::new(service)).await
    }
}
