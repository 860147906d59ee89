//! Settings of ledger-svc.

use florin::config::{Common, Env};

/// The settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Those that every service has.
    pub common: Common,
}

impl Config {
    /// Reads them.
    pub fn read(env: &mut Env) -> Self {
        Self { common: Common::read(env) }
    }
}
