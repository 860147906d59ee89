//! `cargo xtask`: what `make` runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use xtask::process::{is_running, signal_to};
use xtask::project::{self, program, run};
use xtask::services::Options;
use xtask::stack::Stack;
use xtask::{Result, tools};

/// The developer's tool: the local stack, demo, tests.
#[derive(Debug, Parser)]
#[command(name = "xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Start a stack, pay orders through it, show where each cent went, audit, and stop.
    Demo {
        /// How many orders.
        #[arg(long, default_value_t = 2000)]
        orders: u32,
        /// NORMAL, PEAK, DEGRADED or BEST.
        #[arg(long, default_value = "NORMAL")]
        scenario: String,
        /// The same seed makes the same orders and outcomes.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Where the summary goes as JSON.
        #[arg(long)]
        report: Option<PathBuf>,
    },
    /// Start a stack and leave it running.
    Up,
    /// Stop the stack that `up` started.
    Down,
    /// Check format, lints and contracts.
    Check,
    /// Run every test.
    Test {
        /// Handed to cargo test.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Describe the checked queries anew, after a change of SQL.
    Prepare,
}

/// What `down` needs to know.
#[derive(Debug, Serialize, Deserialize)]
struct Running {
    pids: BTreeMap<String, u32>,
    folders: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Demo { orders, scenario, seed, report } => demo(orders, scenario, seed, report),
        Task::Up => up(),
        Task::Down => down(),
        Task::Check => check(),
        Task::Test { arguments } => test(&arguments),
        Task::Prepare => prepare(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// A fresh folder below `.dev`.
fn fresh(name: &str) -> Result<PathBuf> {
    let folder = project::dev()?.join(name);
    let trouble = |error: std::io::Error| format!("{}: {error}", folder.display());
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(trouble)?;
    }
    fs::create_dir_all(&folder).map_err(trouble)?;
    Ok(folder)
}

fn demo(orders: u32, scenario: String, seed: u64, report: Option<PathBuf>) -> Result<()> {
    project::build()?;
    let mut options = Options { scenario, seed, ..Options::default() };
    // A demo shows retries within seconds, and a slow PSP does not slow it down.
    for (name, value) in
        [("FLORIN_RETRY_BASE_MS", "200"), ("FLORIN_PSP_DEADLINE_MS", "1000"), ("FLORIN_PSP_CALLS", "256")]
    {
        options.settings.insert(name.to_owned(), value.to_owned());
    }
    let interrupted = on_interrupt();
    println!("starting Postgres, NATS, Redis, the PSP simulator and four services");
    let folder = fresh(&format!("demo-{}", std::process::id()))?;
    let mut stack = Stack::start(&folder, options)?;
    let mut florin = Command::new(program("florin"));
    florin.envs(&stack.addresses).arg("load").args(["--orders", &orders.to_string(), "--seed", &seed.to_string()]);
    if let Some(report) = report {
        florin.arg("--report").arg(report);
    }
    let mut child = florin.spawn().map_err(|error| format!("florin: {error}"))?;
    let status = loop {
        if interrupted() {
            let _ = child.kill();
        }
        if let Some(status) = child.try_wait().map_err(|error| format!("florin: {error}"))? {
            break status;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    stack.stop();
    drop(stack);
    if status.success() {
        return fs::remove_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()));
    }
    if interrupted() {
        let _ = fs::remove_dir_all(&folder);
        return Err("interrupted; everything that was started is stopped".to_owned());
    }
    Err(format!("the demo failed; the logs are in {}", folder.join("logs").display()))
}

/// Whether Ctrl-C was pressed, from now on.
fn on_interrupt() -> impl Fn() -> bool {
    static INTERRUPTED: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if let Ok(runtime) = runtime {
            runtime.block_on(async {
                use tokio::signal::unix::{SignalKind, signal};
                if let (Ok(mut interrupt), Ok(mut terminate)) =
                    (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
                {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    INTERRUPTED.store(true, Ordering::SeqCst);
                }
            });
        }
    });
    || INTERRUPTED.load(Ordering::SeqCst)
}

fn up() -> Result<()> {
    let state = project::dev()?.join("stack.json");
    if let Some(running) = running(&state)
        && running.pids.values().any(|pid| is_running(*pid))
    {
        return Err("a stack is running already: make down stops it".to_owned());
    }
    project::build()?;
    let interrupted = on_interrupt();
    let stack = Stack::start(&fresh("stack")?, Options::default())?;
    if interrupted() {
        return Err("interrupted; everything that was started is stopped".to_owned());
    }
    let described = serde_json::to_string(&Running { pids: stack.pids(), folders: stack.folders() })
        .map_err(|error| error.to_string())?;
    let variables: String = stack.addresses.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    let environment = project::dev()?.join("stack.env");
    fs::write(&state, described)
        .and_then(|()| fs::write(&environment, &variables))
        .map_err(|error| format!("{}: {error}", environment.display()))?;
    print!("{variables}");
    let api = stack
        .addresses
        .get("FLORIN_PAYMENT_API")
        .map(|url| url.trim_start_matches("http://").to_owned())
        .unwrap_or_default();
    stack.let_go();
    let body = concat!(
        r#"{"orderId":"order-1","buyerId":"buyer-1","total":{"currencyCode":"EUR","minorUnits":"3000"},"#,
        r#""paymentSource":{"token":"tok_ok"},"wait":"5s","lines":["#,
        r#"{"sellerId":"alice","amount":{"currencyCode":"EUR","minorUnits":"1000"}},"#,
        r#"{"sellerId":"bob","amount":{"currencyCode":"EUR","minorUnits":"2000"}}]}"#,
    );
    let florin = program("florin");
    println!("\nThe stack is running; its addresses are in .dev/stack.env. Try:\n");
    println!("  grpcurl -plaintext -H 'idempotency-key: try-1' -d '{body}' \\");
    println!("    {api} florin.payment.v1.PaymentService/CreatePayment\n");
    println!("  {} pay --line alice=10.00 --line bob=20.00 --currency EUR --wait 5\n", florin.display());
    println!("  make down");
    Ok(())
}

fn running(state: &PathBuf) -> Option<Running> {
    serde_json::from_str(&fs::read_to_string(state).ok()?).ok()
}

fn down() -> Result<()> {
    let dev = project::dev()?;
    let Some(running) = running(&dev.join("stack.json")) else { return Err("no stack is running".to_owned()) };
    // Services first, what they need last.
    let order =
        ["payment-api", "psp-worker", "ledger-svc", "balance-svc", "psp-simulator", "redis", "nats", "postgres"];
    for name in order {
        let Some(pid) = running.pids.get(name) else { continue };
        signal_to(*pid, if name == "postgres" { Signal::SIGINT } else { Signal::SIGTERM });
        for _ in 0..2000 {
            if !is_running(*pid) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        signal_to(*pid, Signal::SIGKILL);
    }
    for folder in running.folders {
        let _ = fs::remove_dir_all(folder);
    }
    for name in ["stack.json", "stack.env"] {
        let _ = fs::remove_file(dev.join(name));
    }
    println!("stopped");
    Ok(())
}

fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    // Queries are checked against their committed descriptions, whatever database the developer's shell names.
    cargo.current_dir(project::root()).env("SQLX_OFFLINE", "true").env_remove("DATABASE_URL");
    cargo
}

fn check() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(Command::new(tools::buf()?).args(["lint", "proto"]).current_dir(project::root()))?;
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"]))
}

fn test(arguments: &[String]) -> Result<()> {
    project::build()?;
    // One stack for all tests that leave it whole; those that break things start their own.
    let folder = fresh(&format!("test-{}", std::process::id()))?;
    let mut options = Options { fsync: false, ..Options::default() };
    for (name, value) in [("FLORIN_RETRY_BASE_MS", "100"), ("FLORIN_PSP_DEADLINE_MS", "1000")] {
        options.settings.insert(name.to_owned(), value.to_owned());
    }
    // cargo ends by the interrupt itself; we live on to stop the stack.
    let _interrupted = on_interrupt();
    let mut stack = Stack::start(&folder, options)?;
    let outcome = run(cargo().args(["test", "--workspace", "--locked"]).args(arguments).envs(&stack.addresses));
    stack.stop();
    drop(stack);
    if outcome.is_ok() {
        return fs::remove_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()));
    }
    outcome.map_err(|error| format!("{error}; the stack's logs are in {}", folder.join("logs").display()))
}

/// Describes the checked queries against a database that holds all services' tables.
fn prepare() -> Result<()> {
    let folder = fresh("prepare")?;
    let stack = Stack::base(&folder, Options { fsync: false, ..Options::default() })?;
    let address = stack.addresses.get("FLORIN_POSTGRES").cloned().unwrap_or_default();
    let database = format!("postgres://florin:florin@{address}/postgres");
    let descriptions = project::root().join(".sqlx");
    let _ = fs::remove_dir_all(&descriptions);
    let trouble = |error: std::io::Error| format!("{}: {error}", descriptions.display());
    fs::create_dir_all(&descriptions).map_err(trouble)?;
    migrate(&database)?;
    // The macros describe their queries when they are expanded: expand all of them.
    for package in ["florin", "payment-api", "psp-worker", "ledger-svc", "balance-svc", "cli", "e2e"] {
        run(Command::new("cargo").args(["clean", "-p", package]).current_dir(project::root()))?;
    }
    let mut check = Command::new("cargo");
    check.current_dir(project::root()).args(["check", "--workspace", "--all-targets"]);
    run(check.env("DATABASE_URL", &database).env("SQLX_OFFLINE_DIR", &descriptions).env("SQLX_OFFLINE", "false"))
}

fn migrate(database: &str) -> Result<()> {
    use sqlx::Connection as _;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut connection =
            sqlx::PgConnection::connect(database).await.map_err(|error| format!("postgres: {error}"))?;
        for folder in [
            "migrations",
            "payment-api/migrations",
            "psp-worker/migrations",
            "ledger-svc/migrations",
            "balance-svc/migrations",
        ] {
            let source = project::root().join(folder);
            let mut migrator =
                sqlx::migrate::Migrator::new(source).await.map_err(|error| format!("{folder}: {error}"))?;
            // One database for all of them: each keeps a book of its own, the last one under the usual name.
            if folder != "balance-svc/migrations" {
                migrator.dangerous_set_table_name(format!("_{}", folder.replace(['/', '-'], "_")));
            }
            migrator.run(&mut connection).await.map_err(|error| format!("{folder}: {error}"))?;
        }
        Ok(())
    })
}
