//! The `florin` process.

use std::process::ExitCode;

use clap::Parser as _;
use cli::arguments::{Arguments, Command};
use cli::connection::Connection;
use cli::output::Output;
use cli::{audit, books, explain, load, operate, pay};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything was as it should be.
async fn run(Arguments { json, command }: Arguments) -> cli::Result<bool> {
    let connection = Connection::find()?;
    let output = Output { json };
    match command {
        Command::Pay(order) => pay::create(&connection, output, order).await,
        Command::Get { id } => pay::get(&connection, output, &id).await,
        Command::Watch { payment_id } => pay::watch(&connection, output, &payment_id).await,
        Command::List(filter) => pay::list(&connection, output, filter).await,
        Command::Orders(filter) => pay::orders(&connection, output, filter).await,
        Command::Explain { payment_id } => explain::explain(&connection, output, &payment_id).await,
        Command::Balance { account, strong } => books::balance(&connection, output, &account, strong).await,
        Command::Balances { seller } => books::seller_balances(&connection, output, &seller).await,
        Command::Statement { account, limit } => books::statement(&connection, output, &account, limit).await,
        Command::TrialBalance => books::trial_balance(&connection, output).await,
        Command::DeadLetters(what) => operate::dead_letters(&connection, output, what).await,
        Command::Status => operate::status(&connection, output).await,
        Command::Audit(options) => audit::command(&connection, output, options).await,
        Command::Load(options) => load::command(&connection, output, options).await,
    }
}
