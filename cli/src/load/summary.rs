//! What became of a run.

use std::collections::BTreeMap;
use std::time::Duration;

use florin::id::PaymentId;
use florin::proto::balance::v1::ListSellerBalancesRequest;
use florin::proto::ledger::v1::GetTrialBalanceRequest;
use serde::Serialize;
use uuid::Uuid;

use crate::Result;
use crate::audit::{Acknowledged, Report};
use crate::books::{seller_row, show_trial_balance};
use crate::connection::{Connection, refused};
use crate::explain::explain;
use crate::output::{Output, Table, value};

/// How far all payments of a stack are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    payments: i64,
    completed: i64,
    orders: i64,
    charged: i64,
    succeeded: i64,
    posted: i64,
    fees: i64,
    in_balance: i64,
}

impl Progress {
    /// Reads it from the databases.
    ///
    /// # Errors
    /// One does not answer.
    pub async fn read(connection: &Connection) -> Result<Self> {
        let payments = connection.database("FLORIN_PAYMENT_API")?;
        let ledger = connection.database("FLORIN_LEDGER_SVC")?;
        let balances = connection.database("FLORIN_BALANCE_SVC")?;
        let progress = async {
            let orders = sqlx::query!(
                r#"
                select count(*) as "orders!", count(*) filter (where next_action_at is null) as "charged!",
                       count(*) filter (where state = 'SUCCEEDED') as "succeeded!" from payment_orders
                "#
            );
            let orders = orders.fetch_one(&payments).await?;
            let heads =
                sqlx::query!(r#"select count(*) as "payments!", count(completed_at) as "completed!" from payments"#);
            let heads = heads.fetch_one(&payments).await?;
            let entries = sqlx::query!(
                r#"
                select count(*) filter (where kind = 'CAPTURE') as "captures!", count(*) filter (where kind = 'FEE') as "fees!"
                from journal_entries
                "#
            );
            let entries = entries.fetch_one(&ledger).await?;
            let applied = sqlx::query_scalar!(r#"select count(*) as "count!" from applied_entries"#);
            Ok::<_, sqlx::Error>(Self {
                payments: heads.payments,
                completed: heads.completed,
                orders: orders.orders,
                charged: orders.charged,
                succeeded: orders.succeeded,
                posted: entries.captures,
                fees: entries.fees,
                in_balance: applied.fetch_one(&balances).await?,
            })
        };
        let progress = progress.await.map_err(|error| format!("the databases: {error}"));
        for pool in [payments, ledger, balances] {
            pool.close().await;
        }
        progress
    }

    /// Payment orders that were captured.
    #[must_use]
    pub fn captured(&self) -> i64 {
        self.succeeded
    }

    /// What has happened since.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            payments: self.payments - before.payments,
            completed: self.completed - before.completed,
            orders: self.orders - before.orders,
            charged: self.charged - before.charged,
            succeeded: self.succeeded - before.succeeded,
            posted: self.posted - before.posted,
            fees: self.fees - before.fees,
            in_balance: self.in_balance - before.in_balance,
        }
    }

    /// Whether this many payments are final, posted and in the balances.
    #[must_use]
    pub fn is_complete(&self, payments: u32) -> bool {
        self.payments >= i64::from(payments)
            && self.completed == self.payments
            && self.posted == self.succeeded
            && self.in_balance == self.posted + self.fees
    }

    /// A line for people.
    #[must_use]
    pub fn bar(&self, accepted: usize, payments: u32) -> String {
        let width = 20;
        let of = |part: i64, whole: i64| usize::try_from(part * width / whole.max(1)).unwrap_or_default();
        let filled = of(self.completed, i64::from(payments)).min(20);
        let bar = "#".repeat(filled) + &".".repeat(20 - filled);
        let in_balance =
            if self.posted + self.fees > 0 { self.in_balance * self.posted / (self.posted + self.fees) } else { 0 };
        format!(
            "[{bar}] accepted {accepted}/{payments}  charged {}/{} orders  posted {}  in balance {in_balance}",
            self.charged, self.orders, self.posted
        )
    }
}

/// The summary of a run.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Payments by their final state.
    pub payments: BTreeMap<String, i64>,
    /// Payment orders by their final state.
    pub payment_orders: BTreeMap<String, i64>,
    /// Failed payment orders by reason.
    pub failures: BTreeMap<String, i64>,
    /// Calls to charge.
    pub psp_attempts: i64,
    /// Of these, those after the first call of a charge.
    pub psp_retries: i64,
    /// Look-ups.
    pub psp_inquiries: i64,
    /// Milliseconds from the first accept to the last balance.
    pub elapsed_ms: u64,
    /// Payment orders in the balances per second.
    pub payment_orders_per_second: u64,
    /// Milliseconds from accept to balance, median of all captured payment orders.
    pub accept_to_balance_p50_ms: i64,
    /// The same, 99th percentile.
    pub accept_to_balance_p99_ms: i64,
    /// The audit.
    pub audit: Report,
    /// What ten sellers have.
    pub seller_balances: BTreeMap<String, serde_json::Value>,
    /// Totals per account type and currency.
    pub trial_balance: serde_json::Value,
    /// One payment from the call to the cent.
    pub explained: serde_json::Value,
    #[serde(skip)]
    example: Option<String>,
    #[serde(skip)]
    sellers: Vec<String>,
}

impl Summary {
    /// Gathers it from the databases.
    ///
    /// # Errors
    /// One does not answer.
    pub async fn gather(
        connection: &Connection,
        run: &[Acknowledged],
        elapsed: Duration,
        audit: Report,
    ) -> Result<Self> {
        let ids: Vec<Uuid> =
            run.iter().filter_map(|told| told.payment_id.parse::<PaymentId>().ok()).map(PaymentId::uuid).collect();
        let trouble = |error: sqlx::Error| format!("the databases: {error}");
        let payments = connection.database("FLORIN_PAYMENT_API")?;
        let psp = connection.database("FLORIN_PSP_WORKER")?;
        let states = sqlx::query!(
            r#"select state, count(*) as "count!" from payments where payment_id = any($1) group by state"#,
            &ids
        );
        let states = states.fetch_all(&payments).await.map_err(trouble)?;
        let orders = sqlx::query!(
            r#"select state, failure_reason, count(*) as "count!" from payment_orders where payment_id = any($1) group by state, failure_reason"#,
            &ids
        );
        let orders = orders.fetch_all(&payments).await.map_err(trouble)?;
        let calls = sqlx::query!(
            r#"
            select coalesce(sum(attempt_count), 0)::bigint as "attempts!", coalesce(sum(greatest(attempt_count - 1, 0)), 0)::bigint as "retries!",
                   coalesce(sum(inquiry_count), 0)::bigint as "inquiries!"
            from charges where payment_id = any($1)
            "#,
            &ids
        );
        let calls = calls.fetch_one(&psp).await.map_err(trouble)?;
        let mut payment_orders = BTreeMap::new();
        let mut failures = BTreeMap::new();
        for row in orders {
            *payment_orders.entry(row.state).or_default() += row.count;
            if let Some(reason) = row.failure_reason {
                *failures.entry(reason).or_default() += row.count;
            }
        }
        // The one that says most: with the most calls to the PSP.
        let example = sqlx::query_scalar!(
            "select payment_id from payment_orders where payment_id = any($1) and state = 'SUCCEEDED' order by attempt_count desc, payment_order_id limit 1",
            &ids
        );
        let example = example.fetch_optional(&payments).await.map_err(trouble)?;
        let sellers = sqlx::query_scalar!(
            "select distinct seller_id from payment_orders where payment_id = any($1) and state = 'SUCCEEDED' order by seller_id limit 10",
            &ids
        );
        let sellers = sellers.fetch_all(&payments).await.map_err(trouble)?;
        let mut waits = latencies(connection, &ids).await?;
        waits.sort_unstable();
        let example = example.map(|id| PaymentId::from_uuid(id).to_string());
        let explained = match &example {
            Some(id) => crate::explain::gather(connection, id).await?.to_json()?,
            None => serde_json::Value::Null,
        };
        let mut seller_balances = BTreeMap::new();
        for seller in &sellers {
            let request = ListSellerBalancesRequest { seller_id: seller.clone(), ..Default::default() };
            let answer = connection.balances()?.list_seller_balances(request).await.map_err(refused)?;
            seller_balances.insert(seller.clone(), value(answer.get_ref())?);
        }
        let totals = connection.ledger()?.get_trial_balance(GetTrialBalanceRequest {}).await.map_err(refused)?;
        let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let total: i64 = payment_orders.values().sum();
        Ok(Self {
            payments: states.into_iter().map(|row| (row.state, row.count)).collect(),
            payment_orders,
            failures,
            psp_attempts: calls.attempts,
            psp_retries: calls.retries,
            psp_inquiries: calls.inquiries,
            elapsed_ms,
            payment_orders_per_second: u64::try_from(total).unwrap_or_default() * 1000 / elapsed_ms.max(1),
            accept_to_balance_p50_ms: percentile(&waits, 50),
            accept_to_balance_p99_ms: percentile(&waits, 99),
            audit,
            seller_balances,
            trial_balance: value(totals.get_ref())?,
            explained,
            example,
            sellers,
        })
    }

    /// Prints it for people.
    ///
    /// # Errors
    /// A service does not answer.
    pub async fn show(&self, connection: &Connection) -> Result<()> {
        let mut table = Table::new(&["OUTCOME", ">PAYMENTS"]);
        for (state, count) in &self.payments {
            table.row([state.clone(), count.to_string()]);
        }
        println!();
        table.print();
        println!("\npayment orders: {}", list(&self.payment_orders));
        println!("failed because: {}", list(&self.failures));
        println!(
            "PSP: {} calls to charge, {} of them retries; {} inquiries",
            self.psp_attempts, self.psp_retries, self.psp_inquiries
        );
        println!(
            "from first accept to last balance: {} ms ({} payment orders/s)",
            self.elapsed_ms, self.payment_orders_per_second
        );
        println!(
            "from accept to balance: p50 {} ms, p99 {} ms",
            self.accept_to_balance_p50_ms, self.accept_to_balance_p99_ms
        );
        println!("\nTEN SELLERS");
        self.show_sellers(connection).await?;
        println!("\nTRIAL BALANCE");
        let totals = connection.ledger()?.get_trial_balance(GetTrialBalanceRequest {}).await.map_err(refused)?;
        show_trial_balance(totals.get_ref());
        if let Some(example) = &self.example {
            println!("\nONE PAYMENT EXPLAINED");
            explain(connection, Output { json: false }, example).await?;
        }
        println!("\nAUDIT");
        self.audit.show();
        Ok(())
    }

    async fn show_sellers(&self, connection: &Connection) -> Result<()> {
        let mut table = Table::new(&["SELLER", "CURRENCY", ">PENDING", ">AVAILABLE", ">RESERVED", ">IN TRANSIT"]);
        for seller in &self.sellers {
            let request = ListSellerBalancesRequest { seller_id: seller.clone(), ..Default::default() };
            let answer = connection.balances()?.list_seller_balances(request).await.map_err(refused)?.into_inner();
            for found in &answer.balances {
                table.row(seller_row(seller, found));
            }
        }
        table.print();
        Ok(())
    }
}

/// Milliseconds from accept to balance of all captured payment orders: three databases of one machine.
async fn latencies(connection: &Connection, payments: &[Uuid]) -> Result<Vec<i64>> {
    let trouble = |error: sqlx::Error| format!("the databases: {error}");
    let accepted = sqlx::query!("select payment_id, created_at from payments where payment_id = any($1)", payments);
    let accepted = accepted.fetch_all(&connection.database("FLORIN_PAYMENT_API")?).await.map_err(trouble)?;
    let accepted: BTreeMap<Uuid, _> = accepted.into_iter().map(|row| (row.payment_id, row.created_at)).collect();
    let entries = sqlx::query!(
        r#"select entry_id, payment_id as "payment_id!" from journal_entries where payment_id = any($1) and kind = 'CAPTURE'"#,
        payments
    );
    let entries = entries.fetch_all(&connection.database("FLORIN_LEDGER_SVC")?).await.map_err(trouble)?;
    let ids: Vec<Uuid> = entries.iter().map(|row| row.entry_id).collect();
    let applied = sqlx::query!("select entry_id, applied_at from applied_entries where entry_id = any($1)", &ids);
    let applied = applied.fetch_all(&connection.database("FLORIN_BALANCE_SVC")?).await.map_err(trouble)?;
    let applied: BTreeMap<Uuid, _> = applied.into_iter().map(|row| (row.entry_id, row.applied_at)).collect();
    let wait = |entry: &Uuid, payment: &Uuid| Some((*applied.get(entry)? - *accepted.get(payment)?).num_milliseconds());
    Ok(entries.iter().filter_map(|row| wait(&row.entry_id, &row.payment_id)).collect())
}

/// Of sorted figures; 0 of none.
fn percentile(sorted: &[i64], percent: usize) -> i64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * percent / 100).copied().unwrap_or_default()
}

fn list(counts: &BTreeMap<String, i64>) -> String {
    let parts: Vec<String> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_sorted_figures() {
        let figures: Vec<i64> = (1..=100).collect();
        assert_eq!(
            (percentile(&figures, 50), percentile(&figures, 99), percentile(&[], 50), percentile(&[7], 99)),
            (50, 99, 0, 7)
        );
    }
}
