//! Settings of balance-svc.

use florin::config::{Common, Env};

/// The settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Those that every service has.
    pub common: Common,
    /// Redis: the cache.
    pub redis_url: String,
    /// ledger-svc, for the rebuild.
    pub ledger_url: String,
    /// Whether each change of a balance is published as an event.
    pub publish_changes: bool,
}

impl Config {
    /// Reads them.
    pub fn read(env: &mut Env) -> Self {
        Self {
            common: Common::read(env),
            redis_url: env.required("FLORIN_REDIS_URL", "Redis, redis://host:port", String::new()),
            ledger_url: env.or("FLORIN_LEDGER_SVC", "ledger-svc, for the rebuild", "http://127.0.0.1:7003".to_owned()),
            publish_changes: env.or("FLORIN_PUBLISH_BALANCES", "publish BalancesChanged", false),
        }
    }
}
