//! The `psp-worker` process.

use std::process::ExitCode;

use florin::host::{self, Command, Host};
use psp_worker::config::Config;
use psp_worker::{App, MIGRATOR, SERVICE};

fn main() -> ExitCode {
    host::main(Config::read, async |config, command| match command {
        Command::Serve => App::build(config).await?.run().await,
        Command::Migrate => Host::migrate(SERVICE, &config.common, &MIGRATOR).await,
        Command::Settings | Command::Other(_) => Err("usage: psp-worker [serve | migrate | settings]".into()),
    })
}
