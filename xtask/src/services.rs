//! The four services: their ports, databases and settings.

use std::collections::BTreeMap;
use std::process::Command;

use crate::Result;
use crate::process::free_port;
use crate::project::program;

/// The services, with the variable that names each to the `florin` command.
pub const SERVICES: [(&str, &str); 4] = [
    ("payment-api", "FLORIN_PAYMENT_API"),
    ("psp-worker", "FLORIN_PSP_WORKER"),
    ("ledger-svc", "FLORIN_LEDGER_SVC"),
    ("balance-svc", "FLORIN_BALANCE_SVC"),
];

/// What a run wants otherwise than by default.
#[derive(Debug, Clone)]
pub struct Options {
    /// What `tok_random` meets at the simulator.
    pub scenario: String,
    /// Of the simulator.
    pub seed: u64,
    /// Behaviours by rate, in percent.
    pub rates: String,
    /// Settings of all services that differ from their defaults.
    pub settings: BTreeMap<String, String>,
    /// Whether Postgres waits for the disk. Only short-lived tests may do without.
    pub fsync: bool,
}

impl Default for Options {
    fn default() -> Self {
        // Nobody balances load over a local stack: it may stop at once.
        let settings = [("FLORIN_DRAIN_DELAY_MS", "0")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self { scenario: "NORMAL".to_owned(), seed: 1, rates: String::new(), settings: settings.into(), fsync: true }
    }
}

/// A service's place.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its name.
    pub name: &'static str,
    /// The variable that names it to the `florin` command.
    pub variable: &'static str,
    /// Port of gRPC.
    pub grpc: u16,
    /// Port of metrics and health.
    pub ops: u16,
}

impl Place {
    /// A place with free ports.
    ///
    /// # Errors
    /// There are none.
    pub fn free((name, variable): (&'static str, &'static str)) -> Result<Self> {
        Ok(Self { name, variable, grpc: free_port()?, ops: free_port()? })
    }

    /// Its database and the role that it works as.
    #[must_use]
    pub fn database(&self) -> String {
        format!("florin_{}", self.name.replace('-', "_"))
    }

    /// The command that runs it.
    #[must_use]
    pub fn command(&self, addresses: &BTreeMap<String, String>, options: &Options) -> Command {
        let mut command = Command::new(program(self.name));
        // Only what is written here reaches it: a service must not depend on the developer's shell.
        command.env_clear();
        let database = self.database();
        let of = |name: &str| addresses.get(name).cloned().unwrap_or_default();
        let postgres = of("FLORIN_POSTGRES");
        command
            .env("FLORIN_GRPC_LISTEN", format!("127.0.0.1:{}", self.grpc))
            .env("FLORIN_OPS_LISTEN", format!("127.0.0.1:{}", self.ops))
            .env("FLORIN_DATABASE_URL", format!("postgres://{database}_app:florin@{postgres}/{database}"))
            .env("FLORIN_DATABASE_OWNER_URL", format!("postgres://florin:florin@{postgres}/{database}"))
            .env("FLORIN_NATS_URL", of("FLORIN_NATS_URL"))
            .env("FLORIN_REDIS_URL", of("FLORIN_REDIS_URL"))
            .env("FLORIN_PSP_URL", of("FLORIN_PSP_URL"))
            .env("FLORIN_LEDGER_SVC", of("FLORIN_LEDGER_SVC"))
            .envs(&options.settings);
        command
    }
}
