//! The `payment-api` process.

use std::process::ExitCode;

use florin::host::{self, Command, Host};
use payment_api::config::Config;
use payment_api::{App, MIGRATOR, SERVICE};

fn main() -> ExitCode {
    host::main(Config::read, async |config, command| match command {
        Command::Serve => App::build(config).await?.run().await,
        Command::Migrate => Host::migrate(SERVICE, &config.common, &MIGRATOR).await,
        Command::Settings | Command::Other(_) => Err("usage: payment-api [serve | migrate | settings]".into()),
    })
}
