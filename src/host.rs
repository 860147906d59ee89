//! What every service is built on: settings, database, NATS, relay, consumers, servers, and the order of starting and
//! stopping.
//!
//! A service starts before its neighbours do and waits for them: wrong settings end the process, an unreachable
//! neighbour does not. It stops in order: not ready; a delay, so that nobody sends new calls; watches end; calls
//! finish; intake ends; batches finish; the outbox is flushed and the lease given back; NATS, then the pool, are closed.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::migrate::Migrator;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::clock::{Clock, SystemClock};
use crate::config::{Common, Env};
use crate::consumer::{Consumer, Handler};
use crate::health::Health;
use crate::ops::Ops;
use crate::proto::ops::v1::ops_service_server::OpsServiceServer;
use crate::proto::ops::v1::reconcile_service_server::ReconcileServiceServer;
use crate::relay::{self, Relay};
use crate::server::{self, Edge, MAX_REQUEST_BYTES};
use crate::shutdown::Shutdown;
use crate::stream::{Broker, ConsumerSpec};
use crate::telemetry::{self, Telemetry};
use crate::{partitions, pg};

/// Exit code of wrong settings (`EX_USAGE` of sysexits.h).
const WRONG_SETTINGS: u8 = 64;
/// Between two tries to reach a database that is not there yet.
const DATABASE_RETRY: Duration = Duration::from_millis(500);

/// What went wrong so badly that the process ends.
pub type Fatal = Box<dyn std::error::Error + Send + Sync>;

/// What is to be done with the process: its first argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Serve until told to stop.
    Serve,
    /// Migrate the database and end.
    Migrate,
    /// Print the settings and end.
    Settings,
    /// Something of the service's own.
    Other(Vec<String>),
}

impl Command {
    fn of(arguments: Vec<String>) -> Self {
        match arguments.first().map(String::as_str) {
            None | Some("serve") => Self::Serve,
            Some("migrate") => Self::Migrate,
            Some("settings") => Self::Settings,
            Some(_) => Self::Other(arguments),
        }
    }
}

/// A service's `main`: reads the settings, then runs the command on a runtime.
pub fn main<C, F, Fut>(read: impl FnOnce(&mut Env) -> C, run: F) -> ExitCode
where
    F: FnOnce(C, Command) -> Fut,
    Fut: Future<Output = Result<(), Fatal>>,
{
    let mut env = Env::process();
    let config = read(&mut env);
    let command = Command::of(std::env::args().skip(1).collect());
    if command == Command::Settings {
        for setting in env.settings() {
            let default = setting.default.as_deref().unwrap_or("required");
            println!("{:<32} {} [{default}]", setting.name, setting.help);
        }
        return ExitCode::SUCCESS;
    }
    if let Err(mistakes) = env.finish() {
        for mistake in mistakes {
            eprintln!("setting {mistake}");
        }
        return ExitCode::from(WRONG_SETTINGS);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(config, command)),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// A service under construction, then running.
pub struct Host {
    /// Name of the service: its publisher name too.
    pub service: &'static str,
    /// The settings that every service has.
    pub settings: Common,
    /// The process's clock.
    pub clock: Arc<dyn Clock>,
    /// The database, as the service's role.
    pub pool: PgPool,
    /// The connection to NATS.
    pub broker: Broker,
    /// Wakes the relay.
    pub relay: relay::Waker,
    /// What the service knows about itself.
    pub health: Health,
    /// The stages of a stop.
    pub shutdown: Shutdown,
    migrator: &'static Migrator,
    telemetry: Telemetry,
    grpc: TcpListener,
    ops: TcpListener,
    consumers: Vec<Consumer>,
    tasks: Vec<Task>,
    nats_required: bool,
}

/// Work that begins when the database is there and ends with the intake.
type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("service", &self.service).finish_non_exhaustive()
    }
}

impl Host {
    /// Binds the ports and prepares the connections; nothing runs yet.
    ///
    /// # Errors
    /// A port is taken or a setting cannot be used.
    pub async fn build(
        service: &'static str,
        settings: Common,
        migrator: &'static Migrator,
        nats_required: bool,
    ) -> Result<Self, Fatal> {
        let telemetry = telemetry::start(service, &settings.log, settings.otlp_endpoint.as_deref())?;
        let pool = pg::pool(&settings.database_url, service, settings.database_connections)
            .map_err(|error| format!("FLORIN_DATABASE_URL: {error}"))?;
        let broker =
            Broker::connect(&settings.nats_url, service).await.map_err(|error| format!("FLORIN_NATS_URL: {error}"))?;
        let shutdown = Shutdown::default();
        shutdown.on_signals()?;
        Ok(Self {
            service,
            clock: Arc::new(SystemClock),
            pool,
            broker,
            relay: relay::Waker::default(),
            health: Health::default(),
            shutdown,
            migrator,
            telemetry,
            grpc: bind("FLORIN_GRPC_LISTEN", settings.grpc_listen).await?,
            ops: bind("FLORIN_OPS_LISTEN", settings.ops_listen).await?,
            consumers: Vec::new(),
            tasks: Vec::new(),
            nats_required,
            settings,
        })
    }

    /// Adds a consumer.
    pub fn consume(&mut self, spec: ConsumerSpec, handler: Arc<dyn Handler>) {
        let (pool, broker, relay) = (self.pool.clone(), self.broker.clone(), self.relay.clone());
        self.consumers.push(Consumer { spec, handler, pool, broker, relay });
    }

    /// Adds work that begins when the database is there. It has to end when [`Shutdown::intake`] is cancelled.
    pub fn spawn(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.push(Box::pin(work));
    }

    /// Serves until a stop is requested, then stops in order.
    ///
    /// # Errors
    /// A server broke.
    pub async fn run(self, routes: Routes) -> Result<(), Fatal> {
        let Self {
            service,
            settings,
            pool,
            broker,
            relay,
            health,
            shutdown,
            migrator,
            telemetry,
            grpc,
            ops,
            consumers,
            tasks,
            nats_required,
            ..
        } = self;
        tracing::info!(grpc = %grpc.local_addr()?, ops = %ops.local_addr()?, "{service} starts");
        let metrics = telemetry.metrics.clone();
        let ops_routes = health.routes(metrics);
        tokio::spawn(async move { axum::serve(ops, ops_routes).await });

        let operators = Ops {
            service,
            pool: pool.clone(),
            consumers: consumers.clone(),
            health: health.clone(),
            relay: relay.clone(),
        };
        let observer = operators.clone();
        let routes = routes
            .add_service(OpsServiceServer::new(operators.clone()).max_decoding_message_size(MAX_REQUEST_BYTES))
            .add_service(ReconcileServiceServer::new(operators).max_decoding_message_size(MAX_REQUEST_BYTES));
        let edge = Edge::new(&settings.merchant, settings.max_calls, shutdown.draining.clone());
        let goaway = CancellationToken::new();
        let mut serving = tokio::spawn(server::serve(grpc, edge, routes, health.clone(), goaway.clone()));

        let intake = TaskTracker::new();
        let mut relay_task = tokio::spawn({
            let (pool, broker, shutdown, health, settings) =
                (pool.clone(), broker.clone(), shutdown.clone(), health.clone(), settings.clone());
            let intake = intake.clone();
            async move {
                health.needs("postgres", true);
                health.needs("nats", nats_required);
                let ready = await_database(service, &settings, &pool, migrator, &health, &shutdown);
                if ready.await.is_none() {
                    return;
                }
                watch_dependencies(&health, &pool, &broker);
                if let Some(owner) = owner_pool(&settings, service) {
                    tokio::spawn(partitions::keep(owner, shutdown.intake.clone()));
                }
                for consumer in consumers {
                    intake.spawn(consumer.run(shutdown.intake.clone()));
                }
                for task in tasks {
                    intake.spawn(task);
                }
                intake.spawn(observer.observe(shutdown.intake.clone()));
                intake.close();
                Relay::new(service, pool, broker, relay).run(shutdown.relay.clone()).await;
            }
        });

        tokio::select! {
            () = shutdown.requested.cancelled() => {}
            outcome = &mut serving => return Err(outcome?.err().unwrap_or_else(|| "the gRPC server ended".into())),
            // Nothing would be published any more, and nobody would notice: end, so that another process leads.
            outcome = &mut relay_task, if !shutdown.requested.is_cancelled() => {
                outcome?;
                if !shutdown.requested.is_cancelled() {
                    return Err("the relay ended".into());
                }
                relay_task = tokio::spawn(async {});
            }
        }
        health.drain();
        tokio::time::sleep(settings.drain_delay).await;
        shutdown.draining.cancel();
        goaway.cancel();
        shutdown.intake.cancel();
        let finished = tokio::time::timeout(settings.drain_timeout, async {
            intake.close();
            intake.wait().await;
            // Calls under way may still write; their messages are published before the lease is given back.
            let _ = serving.await;
            shutdown.relay.cancel();
            relay_task.await
        });
        if finished.await.is_err() {
            tracing::warn!("work under way took too long; what is not committed begins anew elsewhere");
        }
        broker.close().await;
        pool.close().await;
        tracing::info!("{service} stopped");
        Ok(())
    }

    /// Migrates the database as its owner.
    ///
    /// # Errors
    /// There is no owner's URL, or the migration failed.
    pub async fn migrate(service: &'static str, settings: &Common, migrator: &Migrator) -> Result<(), Fatal> {
        let owner = owner_pool(settings, service).ok_or("setting FLORIN_DATABASE_OWNER_URL: is required to migrate")?;
        pg::migrate(&owner, migrator).await?;
        Ok(())
    }
}

async fn bind(setting: &str, address: SocketAddr) -> Result<TcpListener, Fatal> {
    TcpListener::bind(address).await.map_err(|error| format!("{setting}: {address}: {error}").into())
}

fn owner_pool(settings: &Common, service: &str) -> Option<PgPool> {
    // A malformed URL shows as a database that cannot be reached, with the reason in the log.
    pg::pool(settings.database_owner_url.as_deref()?, service, 1).ok()
}

/// Waits until the database answers with the schema that this binary needs. `None`: the process is to stop.
async fn await_database(
    service: &'static str,
    settings: &Common,
    pool: &PgPool,
    migrator: &'static Migrator,
    health: &Health,
    shutdown: &Shutdown,
) -> Option<()> {
    let owner = owner_pool(settings, service);
    while !shutdown.requested.is_cancelled() {
        let outcome = match &owner {
            Some(owner) => pg::migrate(owner, migrator).await.map(|()| true),
            None => pg::schema_is_current(pool, migrator).await,
        };
        let trouble = match outcome {
            Ok(true) => {
                if let Some(owner) = owner {
                    owner.close().await;
                }
                return Some(());
            }
            Ok(false) => "the schema is older than this binary: run migrate".to_owned(),
            Err(error) => error.to_string(),
        };
        health.report("postgres", Err(trouble));
        tokio::time::sleep(DATABASE_RETRY).await;
    }
    None
}

fn watch_dependencies(health: &Health, pool: &PgPool, broker: &Broker) {
    let pool = pool.clone();
    tokio::spawn(health.clone().watch("postgres", move || {
        let pool = pool.clone();
        async move { pg::ping(&pool).await }
    }));
    let broker = broker.clone();
    tokio::spawn(health.clone().watch("nats", move || {
        let broker = broker.clone();
        async move { broker.ping().await }
    }));
}
