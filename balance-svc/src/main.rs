//! The `balance-svc` process.

use std::process::ExitCode;

use balance_svc::config::Config;
use balance_svc::{App, MIGRATOR, SERVICE, rebuild};
use florin::host::{self, Command, Host};

const USAGE: &str = "usage: balance-svc [serve | migrate | settings | rebuild [--apply]]";

fn main() -> ExitCode {
    host::main(Config::read, async |config, command| match command {
        Command::Serve => App::build(config).await?.run().await,
        Command::Migrate => Host::migrate(SERVICE, &config.common, &MIGRATOR).await,
        Command::Other(words) => match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["rebuild"] => rebuild::run(&config, false).await,
            ["rebuild", "--apply"] => rebuild::run(&config, true).await,
            _ => Err(USAGE.into()),
        },
        Command::Settings => Err(USAGE.into()),
    })
}
