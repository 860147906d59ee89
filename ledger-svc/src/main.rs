//! The `ledger-svc` process.

use std::process::ExitCode;

use florin::host::{self, Command, Host};
use ledger_svc::config::Config;
use ledger_svc::{App, MIGRATOR, SERVICE};

fn main() -> ExitCode {
    host::main(Config::read, async |config, command| match command {
        Command::Serve => App::build(config).await?.run().await,
        Command::Migrate => Host::migrate(SERVICE, &config.common, &MIGRATOR).await,
        Command::Settings | Command::Other(_) => Err("usage: ledger-svc [serve | migrate | settings]".into()),
    })
}
