//! What the auditor looks at: rows of the four databases and the PSP's book.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use uuid::Uuid;

use crate::Result;
use crate::connection::Connection;

/// A payment that a client was told to be accepted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Acknowledged {
    /// pay_…
    pub payment_id: String,
    /// ISO 4217 code.
    pub currency: String,
    /// Minor units.
    pub total: i64,
}

/// A charge in the PSP's book.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct BookCharge {
    pub sequence: u64,
    pub reference: String,
    pub status: String,
    pub amount: i64,
    pub currency: String,
    pub executed: bool,
}

#[derive(Debug, Deserialize)]
struct BookPage {
    charges: Vec<BookCharge>,
}

pub(super) struct Payment {
    pub payment_id: Uuid,
    pub currency: String,
    pub total: i64,
    pub state: String,
    pub open_orders: i32,
    pub succeeded_orders: i32,
    pub order_count: i32,
}

pub(super) struct Order {
    pub payment_order_id: Uuid,
    pub payment_id: Uuid,
    pub charge_id: Uuid,
    pub seller_id: String,
    pub currency: String,
    pub fee: i64,
    pub state: String,
    pub captured: i64,
}

pub(super) struct Charge {
    pub charge_id: Uuid,
    pub payment_order_id: Uuid,
    pub state: String,
    pub attempts: i64,
}

/// A posting with its entry and accounts.
pub(super) struct Line {
    pub entry_id: Uuid,
    pub kind: String,
    pub operation_id: Uuid,
    pub payment_order_id: Option<Uuid>,
    pub seller_id: Option<String>,
    pub amount: i64,
    pub currency: String,
    pub debit_account: String,
    pub debit_currency: String,
    pub credit_account: String,
    pub credit_currency: String,
}

pub(super) struct Balance {
    pub account: String,
    pub debits: i64,
    pub credits: i64,
    pub version: i64,
}

pub(super) struct Outboxed {
    pub event_id: Uuid,
    pub message_type: String,
    pub published: bool,
    pub age_seconds: f64,
}

pub(super) struct Inboxed {
    pub event_id: Uuid,
    pub consumer: String,
}

/// The messaging tables of one service.
pub(super) struct Messaging {
    pub service: &'static str,
    pub outbox: Vec<Outboxed>,
    pub inbox: Vec<Inboxed>,
    pub open_dead_letters: i64,
}

/// Everything at once.
pub(super) struct Snapshot {
    pub payments: Vec<Payment>,
    pub orders: Vec<Order>,
    pub unexpected_charges: i64,
    pub charges: Vec<Charge>,
    pub entries: i64,
    pub lines: Vec<Line>,
    pub posted_events: Vec<Uuid>,
    pub balances: Vec<Balance>,
    pub messaging: Vec<Messaging>,
    pub book: HashMap<String, Vec<BookCharge>>,
}

/// Reads what clients were told: one JSON object a line.
pub(super) fn read_acknowledged(path: &Path) -> Result<Vec<Acknowledged>> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let lines = text.lines().filter(|line| !line.is_empty()).enumerate();
    lines
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|error| format!("{}:{}: {error}", path.display(), index + 1))
        })
        .collect()
}

impl Snapshot {
    pub(super) async fn take(connection: &Connection) -> Result<Self> {
        let trouble = |name: &'static str| move |error: sqlx::Error| format!("the database of {name}: {error}");
        let payments = connection.database("FLORIN_PAYMENT_API")?;
        let psp = connection.database("FLORIN_PSP_WORKER")?;
        let ledger = connection.database("FLORIN_LEDGER_SVC")?;
        let balance = connection.database("FLORIN_BALANCE_SVC")?;
        let mut messaging = Vec::new();
        for (service, pool) in
            [("payment-api", &payments), ("psp-worker", &psp), ("ledger-svc", &ledger), ("balance-svc", &balance)]
        {
            messaging.push(self::messaging(service, pool).await.map_err(trouble(service))?);
        }
        let snapshot = Self {
            payments: self::payments(&payments).await.map_err(trouble("payment-api"))?,
            orders: orders(&payments).await.map_err(trouble("payment-api"))?,
            unexpected_charges: unexpected(&payments).await.map_err(trouble("payment-api"))?,
            charges: charges(&psp).await.map_err(trouble("psp-worker"))?,
            entries: entries(&ledger).await.map_err(trouble("ledger-svc"))?,
            lines: lines(&ledger).await.map_err(trouble("ledger-svc"))?,
            posted_events: posted_events(&ledger).await.map_err(trouble("ledger-svc"))?,
            balances: balances(&balance).await.map_err(trouble("balance-svc"))?,
            messaging,
            book: book(connection).await?,
        };
        for pool in [payments, psp, ledger, balance] {
            pool.close().await;
        }
        Ok(snapshot)
    }
}

async fn payments(pool: &PgPool) -> std::result::Result<Vec<Payment>, sqlx::Error> {
    sqlx::query_as!(
        Payment,
        "select payment_id, currency, total, state, open_orders, succeeded_orders, order_count from payments"
    )
    .fetch_all(pool)
    .await
}

async fn orders(pool: &PgPool) -> std::result::Result<Vec<Order>, sqlx::Error> {
    sqlx::query_as!(
        Order,
        "select payment_order_id, payment_id, charge_id, seller_id, currency, fee, state, captured from payment_orders"
    )
    .fetch_all(pool)
    .await
}

async fn unexpected(pool: &PgPool) -> std::result::Result<i64, sqlx::Error> {
    sqlx::query_scalar!(r#"select count(*) as "count!" from unexpected_charges"#).fetch_one(pool).await
}

async fn charges(pool: &PgPool) -> std::result::Result<Vec<Charge>, sqlx::Error> {
    sqlx::query_as!(
        Charge,
        r#"
        select charge_id, payment_order_id, state,
               (select count(*) from attempts a where a.charge_id = charges.charge_id) as "attempts!"
        from charges
        "#
    )
    .fetch_all(pool)
    .await
}

async fn entries(pool: &PgPool) -> std::result::Result<i64, sqlx::Error> {
    sqlx::query_scalar!(r#"select count(*) as "count!" from journal_entries"#).fetch_one(pool).await
}

async fn lines(pool: &PgPool) -> std::result::Result<Vec<Line>, sqlx::Error> {
    sqlx::query_as!(
        Line,
        r#"
        select p.entry_id, e.kind, e.operation_id, e.payment_order_id, e.seller_id, p.amount, p.currency,
               d.merchant_id || ':' || d.type || '.' || d.entity || '.' || d.currency as "debit_account!",
               d.currency as debit_currency,
               c.merchant_id || ':' || c.type || '.' || c.entity || '.' || c.currency as "credit_account!",
               c.currency as credit_currency
        from postings p join journal_entries e using (entry_id)
             join accounts d on d.account_id = p.debit_account join accounts c on c.account_id = p.credit_account
        "#
    )
    .fetch_all(pool)
    .await
}

async fn posted_events(pool: &PgPool) -> std::result::Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar!("select distinct event_id from journal_entries").fetch_all(pool).await
}

async fn balances(pool: &PgPool) -> std::result::Result<Vec<Balance>, sqlx::Error> {
    sqlx::query_as!(
        Balance,
        r#"
        select a.merchant_id || ':' || a.type || '.' || a.entity || '.' || a.currency as "account!",
               sum(b.debits)::bigint as "debits!", sum(b.credits)::bigint as "credits!", sum(b.version)::bigint as "version!"
        from balance_accounts a join balances b using (account_id) group by a.account_id
        "#
    )
    .fetch_all(pool)
    .await
}

async fn messaging(service: &'static str, pool: &PgPool) -> std::result::Result<Messaging, sqlx::Error> {
    let outbox = sqlx::query_as!(
        Outboxed,
        r#"
        select event_id, message_type, (outbox.era, outbox.xid, outbox.seq) <= (c.era, c.xid, c.seq) as "published!",
               extract(epoch from clock_timestamp() - created_at)::float8 as "age_seconds!"
        from outbox cross join outbox_cursor c
        "#
    );
    let inbox = sqlx::query_as!(Inboxed, "select event_id, consumer from inbox");
    Ok(Messaging {
        service,
        outbox: outbox.fetch_all(pool).await?,
        inbox: inbox.fetch_all(pool).await?,
        open_dead_letters: florin::dead_letter::count_open(pool).await?,
    })
}

/// The whole book, by our reference.
async fn book(connection: &Connection) -> Result<HashMap<String, Vec<BookCharge>>> {
    let url = format!("{}/v1/book", connection.address("FLORIN_PSP_URL")?);
    let key = connection.address("FLORIN_PSP_KEY")?;
    let client = reqwest::Client::new();
    let mut book: HashMap<String, Vec<BookCharge>> = HashMap::new();
    let mut after = 0;
    loop {
        let request = client.get(&url).query(&[("after", after)]).bearer_auth(key);
        let answer = request
            .send()
            .await
            .and_then(reqwest::Response::error_for_status)
            .map_err(|error| format!("the PSP's book: {error}"))?;
        let page: BookPage = answer.json().await.map_err(|error| format!("the PSP's book: {error}"))?;
        let Some(last) = page.charges.last() else { return Ok(book) };
        after = last.sequence;
        for charge in page.charges {
            book.entry(charge.reference.clone()).or_default().push(charge);
        }
    }
}
