//! What can be asked for.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Operates Florin. Finds a running stack by its environment (FLORIN_PAYMENT_API and so on) or by `.dev/stack.env` in
/// this folder or above.
#[derive(Debug, Parser)]
#[command(name = "florin", version, after_help = EXAMPLES)]
pub struct Arguments {
    /// Answer as JSON, for programs.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "Examples:
  florin pay --line alice=10.00 --line bob=20.00 --currency EUR --wait 5
  florin explain pay_01jd…
  florin list --seller alice --state FAILED
  florin statement SELLER_PENDING.alice.EUR
  florin audit --json";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a payment.
    #[command(
        visible_alias = "create",
        after_help = "Example: florin pay --line alice=10.00 --line bob=20.00:ref-7 --currency EUR --token tok_ok --wait 5"
    )]
    Pay(NewOrder),
    /// Show a payment (pay_…), a payment order (po_…) or a journal entry (je_…).
    Get {
        /// Its id.
        id: String,
    },
    /// Show a payment after each change, until it is final.
    Watch {
        /// pay_…
        payment_id: String,
    },
    /// List payments, newest first.
    List(Filter),
    /// List payment orders, newest first.
    Orders(Filter),
    /// Explain a payment from the call to the cent: attempts, entries, balances.
    Explain {
        /// pay_…
        payment_id: String,
    },
    /// Show an account's balance.
    #[command(after_help = "Example: florin balance PSP_RECEIVABLE.simulator-main.EUR --strong")]
    Balance {
        /// TYPE.ENTITY.CURRENCY
        account: String,
        /// Read the table, never the cache.
        #[arg(long)]
        strong: bool,
    },
    /// Show what a seller has pending, available, reserved and in transit.
    Balances {
        /// The merchant's id of the seller.
        seller: String,
    },
    /// Show an account's debits and credits, newest first.
    Statement {
        /// TYPE.ENTITY.CURRENCY
        account: String,
        /// How many lines.
        #[arg(long, default_value_t = 20)]
        limit: i32,
    },
    /// Show the totals per account type and currency.
    TrialBalance,
    /// List, show and replay dead letters.
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Show outboxes, consumers and dependencies of all services.
    Status,
    /// Check the invariants over the four databases and the PSP's book. Exit code 1 on any violation.
    #[command(after_help = "Example: florin audit --settle 60 --acknowledged acknowledged.jsonl")]
    Audit(AuditOptions),
    /// Pay many orders and show what became of them.
    Load(LoadOptions),
}

/// A payment to create.
#[derive(Debug, Args)]
pub struct NewOrder {
    /// A seller's part: SELLER=AMOUNT or SELLER=AMOUNT:REFERENCE, in major units (10.00).
    #[arg(long = "line", required = true)]
    pub lines: Vec<String>,
    /// ISO 4217 code.
    #[arg(long, default_value = "EUR")]
    pub currency: String,
    /// The PSP's token; docs/simulator.md lists those of the simulator.
    #[arg(long, default_value = "tok_ok")]
    pub token: String,
    /// The merchant's id of the order; made up if absent.
    #[arg(long)]
    pub order_id: Option<String>,
    /// The merchant's id of the buyer.
    #[arg(long, default_value = "buyer-1")]
    pub buyer_id: String,
    /// Idempotency key; made up if absent.
    #[arg(long)]
    pub key: Option<String>,
    /// Seconds to wait for the end, 0 to 5.
    #[arg(long, default_value_t = 0)]
    pub wait: i64,
    /// Answer fees and errors, write nothing.
    #[arg(long)]
    pub validate_only: bool,
}

/// What to list.
#[derive(Debug, Args)]
pub struct Filter {
    /// Of this order (payments only).
    #[arg(long)]
    pub order_id: Option<String>,
    /// Of this buyer (payments only).
    #[arg(long)]
    pub buyer_id: Option<String>,
    /// Of this seller.
    #[arg(long)]
    pub seller: Option<String>,
    /// In one of these states, for example FAILED.
    #[arg(long)]
    pub state: Vec<String>,
    /// Only those whose outcome is uncertain (payment orders only).
    #[arg(long)]
    pub uncertain: bool,
    /// How many.
    #[arg(long, default_value_t = 20)]
    pub limit: i32,
}

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadLetters {
    /// List those of all services.
    List {
        /// Also those that were replayed.
        #[arg(long)]
        all: bool,
    },
    /// Show one with its payload.
    Get {
        /// payment-api, psp-worker, ledger-svc or balance-svc.
        service: String,
        /// Its id.
        id: String,
    },
    /// Apply some again. Replaying twice acts once.
    Replay {
        /// payment-api, psp-worker, ledger-svc or balance-svc.
        service: String,
        /// Their ids.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// How to audit.
#[derive(Debug, Clone, Default, Args)]
pub struct AuditOptions {
    /// Seconds that work on its way may take to arrive before it counts as a violation.
    #[arg(long, default_value_t = 0)]
    pub settle: u64,
    /// What clients were told, one JSON object a line: {"payment_id", "currency", "total"}.
    #[arg(long)]
    pub acknowledged: Option<PathBuf>,
}

/// What to pay.
#[derive(Debug, Clone, Args)]
pub struct LoadOptions {
    /// How many orders, of 1 to 5 sellers each.
    #[arg(long, default_value_t = 2000)]
    pub orders: u32,
    /// The same seed makes the same orders.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The PSP's token.
    #[arg(long, default_value = "tok_random")]
    pub token: String,
    /// Calls under way at once.
    #[arg(long, default_value_t = 64)]
    pub concurrency: usize,
    /// Where the summary goes as JSON.
    #[arg(long)]
    pub report: Option<PathBuf>,
    /// Seconds without any progress after which it gives up.
    #[arg(long, default_value_t = 120)]
    pub patience: u64,
}
