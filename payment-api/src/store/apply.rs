//! Applying psp-worker's reports, and asking it again about what is overdue.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use florin::envelope::{self, Keyed};
use florin::id::{EventId, PaymentId};
use florin::money::Money;
use florin::pg::{self, Tx};
use florin::proto::payment::v1::{PaymentCompleted, PaymentOrdersFailed, PaymentOrdersSucceeded};
use florin::proto::psp::v1::ExecuteCharges;
use florin::{outbox, telemetry};
use uuid::Uuid;

use super::Store;
use super::read::{OrderRow, currency};
use crate::payment::{Effect, News, Order, OrderState, Report, Tally};
use crate::watch::Signal;
use crate::wire::Cause;

/// Overdue payment orders taken in one round.
const OVERDUE: i64 = 200;

/// A report with where it came from.
#[derive(Debug, Clone)]
pub struct ReportOf {
    /// The payment that it is about.
    pub payment_id: PaymentId,
    /// The report.
    pub report: Report,
    /// The event that carried it.
    pub event_id: EventId,
    /// Its trace context.
    pub traceparent: String,
}

/// A payment under its lock.
#[derive(Debug, Clone)]
pub struct Head {
    /// Its id.
    pub payment_id: PaymentId,
    /// Its merchant.
    pub merchant_id: String,
    /// The merchant's id of the order.
    pub order_id: String,
    /// What the buyer was to pay.
    pub total: Money,
    /// Minor units captured, once it is final.
    pub captured: i64,
    /// How many orders stand where.
    pub tally: Tally,
    /// Its version after this batch.
    pub version: i64,
    changed: bool,
}

/// What became of a batch of reports.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Reports to set aside, each with its index, a stable reason and a sentence.
    pub parked: Vec<(usize, &'static str, String)>,
    /// Payments that changed, for watchers.
    pub changed: Vec<(PaymentId, Signal)>,
}

/// The facts that a batch tells the world.
#[derive(Default)]
struct Facts {
    succeeded: Vec<Keyed<florin::proto::payment::v1::payment_orders_succeeded::Fact>>,
    failed: Vec<Keyed<florin::proto::payment::v1::payment_orders_failed::Fact>>,
    completed: Vec<Keyed<florin::proto::payment::v1::payment_completed::Fact>>,
}

impl Store {
    /// Applies reports: payments locked in the order of their ids, orders changed where that is legal, payments rolled
    /// up, events written.
    ///
    /// # Errors
    /// Postgres refused; the transaction has to be rolled back.
    pub async fn apply(&self, tx: &mut Tx, reports: &[ReportOf]) -> Result<Outcome, sqlx::Error> {
        let (mut heads, now) = lock_payments(tx, reports).await?;
        let mut orders = load_orders(tx, reports).await?;
        let mut outcome = Outcome::default();
        let mut facts = Facts::default();
        let mut changed: BTreeMap<Uuid, i64> = BTreeMap::new();
        for (index, of) in reports.iter().enumerate() {
            let id = of.report.payment_order_id.uuid();
            let (Some(order), Some(head)) = (orders.get_mut(&id), heads.get_mut(&of.payment_id.uuid())) else {
                outcome.parked.push((
                    index,
                    "UNKNOWN_ORDER",
                    format!("there is no order {} of {}", of.report.payment_order_id, of.payment_id),
                ));
                continue;
            };
            if order.payment_id != of.payment_id {
                let detail = format!("order {} is not of {}", of.report.payment_order_id, of.payment_id);
                outcome.parked.push((index, "ORDER_OF_ANOTHER_PAYMENT", detail));
                continue;
            }
            let version = order.version;
            match order.apply(&of.report, now) {
                Effect::Changed => {
                    changed.entry(id).or_insert(version);
                    head.count(order);
                    facts.add(head, order, of, now);
                    tracing::debug!(
                        traceId = telemetry::trace_id(&of.traceparent), eventId = %of.event_id, aggregateId = %order.charge_id,
                        paymentId = %order.payment_id, paymentOrderId = %order.payment_order_id,
                        sellerId = order.seller_id, state = order.state.as_str(), "payment order changed"
                    );
                }
                Effect::Nothing(why) => {
                    metrics::counter!("florin_reports_ignored_total", "why" => why.to_string()).increment(1);
                    tracing::debug!(paymentOrderId = %order.payment_order_id, %why, "report ignored");
                }
                Effect::UnexpectedCharge => record_unexpected(tx, head, order, of).await?,
                Effect::Contradiction(reason) => {
                    outcome.parked.push((
                        index,
                        reason,
                        format!("order {} is {}", order.payment_order_id, order.state.as_str()),
                    ));
                }
            }
        }
        let changed_orders: Vec<(&Order, i64)> = changed.iter().map(|(id, version)| (&orders[id], *version)).collect();
        update_orders(tx, &changed_orders, self.overdue_seconds()).await?;
        roll_up(tx, &mut heads, now).await?;
        for (head, of) in completed(&heads, reports) {
            let cause = Cause { event_id: Some(of.event_id), traceparent: &of.traceparent, at: now };
            facts.completed.push(cause.completed(head));
        }
        outbox::insert(tx, &facts.messages()).await?;
        let changed = heads.values().filter(|head| head.changed);
        outcome.changed = changed
            .map(|head| (head.payment_id, Signal { version: head.version, is_final: head.tally.open == 0 }))
            .collect();
        Ok(outcome)
    }

    /// Asks psp-worker again about orders without news. It answers what it knows; nothing is charged twice, because the
    /// charge is the same. Answers whether there may be more.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn ask_again(&self) -> Result<bool, sqlx::Error> {
        let mut tx = pg::begin(&self.pool).await?;
        let overdue: Vec<Uuid> = sqlx::query_scalar!(
            r#"
            update payment_orders set next_action_at = clock_timestamp() + make_interval(secs => $1)
            where payment_order_id in (
                select payment_order_id from payment_orders where next_action_at <= clock_timestamp()
                order by next_action_at limit $2 for update skip locked)
            returning payment_order_id
            "#,
            self.overdue_seconds(),
            OVERDUE,
        )
        .fetch_all(&mut *tx)
        .await?;
        if overdue.is_empty() {
            tx.rollback().await?;
            return Ok(false);
        }
        tracing::warn!(orders = overdue.len(), "payment orders without news; psp-worker is asked again");
        metrics::counter!("florin_orders_overdue_total").increment(overdue.len() as u64);
        let payments: Vec<Uuid> = sqlx::query_scalar!(
            "select distinct payment_id from payment_orders where payment_order_id = any($1)",
            &overdue
        )
        .fetch_all(&mut *tx)
        .await?;
        let payments = self.payments_by_id(&payments).await?;
        let charges = payments.iter().map(|payment| {
            let cause = Cause { event_id: None, traceparent: &payment.traceparent, at: payment.updated_at };
            cause.charges(
                payment,
                payment.orders.iter().filter(|order| overdue.contains(&order.payment_order_id.uuid())),
            )
        });
        outbox::insert(&mut tx, &envelope::pack::<ExecuteCharges>(charges.collect())).await?;
        tx.commit().await?;
        self.relay.wake();
        Ok(true)
    }
}

impl Head {
    fn count(&mut self, order: &Order) {
        self.changed = true;
        if order.state.is_final() {
            self.tally.open -= 1;
            self.tally.succeeded += i32::from(order.state == OrderState::Succeeded);
            self.tally.canceled += i32::from(order.state == OrderState::Canceled);
        }
    }
}

impl Facts {
    fn add(&mut self, head: &Head, order: &Order, of: &ReportOf, now: DateTime<Utc>) {
        let traceparent = telemetry::fact_span("payment order result", &of.traceparent, &of.event_id.to_string());
        let cause = Cause { event_id: Some(of.event_id), traceparent: &traceparent, at: now };
        match order.state {
            OrderState::Succeeded => self.succeeded.push(cause.succeeded(&head.merchant_id, order)),
            OrderState::Failed => self.failed.push(cause.failed(&head.merchant_id, order)),
            OrderState::Pending
            | OrderState::Processing
            | OrderState::RequiresAction
            | OrderState::Authorized
            | OrderState::Canceled => {}
        }
    }

    fn messages(self) -> Vec<envelope::Outgoing> {
        let mut messages = envelope::pack::<PaymentOrdersSucceeded>(self.succeeded);
        messages.extend(envelope::pack::<PaymentOrdersFailed>(self.failed));
        messages.extend(envelope::pack::<PaymentCompleted>(self.completed));
        messages
    }
}

/// Payments that this batch completed, each with its last report: the cause.
fn completed<'a>(
    heads: &'a HashMap<Uuid, Head>,
    reports: &'a [ReportOf],
) -> impl Iterator<Item = (&'a Head, &'a ReportOf)> {
    let done = heads.values().filter(|head| head.changed && head.tally.open == 0);
    done.filter_map(|head| Some((head, reports.iter().rev().find(|of| of.payment_id == head.payment_id)?)))
}

async fn lock_payments(tx: &mut Tx, reports: &[ReportOf]) -> Result<(HashMap<Uuid, Head>, DateTime<Utc>), sqlx::Error> {
    let ids: Vec<Uuid> = reports.iter().map(|of| of.payment_id.uuid()).collect();
    let rows = sqlx::query!(
        r#"
        select payment_id, merchant_id, order_id, currency, total, open_orders, succeeded_orders, canceled_orders,
               order_count, version
        from payments where payment_id = any($1) order by payment_id for update
        "#,
        &ids,
    )
    .fetch_all(&mut **tx)
    .await?;
    let now = sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(&mut **tx).await?;
    let mut heads = HashMap::with_capacity(rows.len());
    for row in rows {
        let tally = Tally {
            orders: row.order_count,
            open: row.open_orders,
            succeeded: row.succeeded_orders,
            canceled: row.canceled_orders,
        };
        heads.insert(
            row.payment_id,
            Head {
                payment_id: PaymentId::from_uuid(row.payment_id),
                merchant_id: row.merchant_id,
                order_id: row.order_id,
                total: Money::new(currency(&row.currency)?, row.total),
                captured: 0,
                tally,
                version: row.version,
                changed: false,
            },
        );
    }
    Ok((heads, now))
}

/// The orders of locked payments: nobody else can change them now.
async fn load_orders(tx: &mut Tx, reports: &[ReportOf]) -> Result<HashMap<Uuid, Order>, sqlx::Error> {
    let ids: Vec<Uuid> = reports.iter().map(|of| of.report.payment_order_id.uuid()).collect();
    let rows = sqlx::query_as!(
        OrderRow,
        r#"
        select payment_order_id, payment_id, order_id, buyer_id, seller_id, seller_reference, charge_id, currency,
               amount, fee, fee_schedule_id, fee_schedule_version, state, captured, failure_reason, failure_code,
               failure_message, attempt_count, uncertain_since, next_psp_action_at, psp, psp_account, psp_reference,
               charge_version, created_at, updated_at, version
        from payment_orders where payment_order_id = any($1)
        "#,
        &ids,
    )
    .fetch_all(&mut **tx)
    .await?;
    rows.into_iter().map(|row| row.order().map(|order| (order.payment_order_id.uuid(), order))).collect()
}

/// Writes changed orders, each only from the version that was read: the row count proves it.
async fn update_orders(tx: &mut Tx, orders: &[(&Order, i64)], overdue_seconds: f64) -> Result<(), sqlx::Error> {
    if orders.is_empty() {
        return Ok(());
    }
    let text = |of: fn(&Order) -> &str| orders.iter().map(|(order, _)| of(order)).collect::<Vec<&str>>();
    let failure = |of: fn(&crate::payment::Failure) -> &str| {
        orders.iter().map(|(order, _)| order.failure.as_ref().map(of)).collect::<Vec<Option<&str>>>()
    };
    let ids: Vec<Uuid> = orders.iter().map(|(order, _)| order.payment_order_id.uuid()).collect();
    let before: Vec<i64> = orders.iter().map(|(_, version)| *version).collect();
    let versions: Vec<i64> = orders.iter().map(|(order, _)| order.version).collect();
    let charge_versions: Vec<i64> = orders.iter().map(|(order, _)| order.charge_version).collect();
    let captured: Vec<i64> = orders.iter().map(|(order, _)| order.captured).collect();
    let attempts: Vec<i32> = orders.iter().map(|(order, _)| order.attempt_count).collect();
    let uncertain: Vec<Option<DateTime<Utc>>> = orders.iter().map(|(order, _)| order.uncertain_since).collect();
    let next: Vec<Option<DateTime<Utc>>> = orders.iter().map(|(order, _)| order.next_psp_action_at).collect();
    let times: Vec<DateTime<Utc>> = orders.iter().map(|(order, _)| order.updated_at).collect();
    let finals: Vec<bool> = orders.iter().map(|(order, _)| order.state.is_final()).collect();
    let updated = sqlx::query!(
        r#"
        update payment_orders o set
            state = new.state, version = new.version, charge_version = new.charge_version, captured = new.captured,
            failure_reason = new.failure_reason, failure_code = new.failure_code, failure_message = new.failure_message,
            attempt_count = new.attempt_count, uncertain_since = new.uncertain_since,
            next_psp_action_at = new.next_psp_action_at, psp = new.psp, psp_account = new.psp_account,
            psp_reference = new.psp_reference, updated_at = new.updated_at,
            -- psp-worker plans its own next action; we ask again only after that.
            next_action_at = case when new.is_final then null
                else greatest(clock_timestamp(), new.next_psp_action_at) + make_interval(secs => $17) end
        from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::text[],
                    $9::text[], $10::integer[], $11::timestamptz[], $12::timestamptz[], $13::text[], $14::text[],
                    $15::text[], $16::timestamptz[], $18::boolean[])
             as new (payment_order_id, before, version, charge_version, captured, state, failure_reason, failure_code,
                     failure_message, attempt_count, uncertain_since, next_psp_action_at, psp, psp_account,
                     psp_reference, updated_at, is_final)
        where o.payment_order_id = new.payment_order_id and o.version = new.before
          and o.state not in ('SUCCEEDED', 'FAILED', 'CANCELED')
        "#,
        &ids,
        &before,
        &versions,
        &charge_versions,
        &captured,
        &text(|order| order.state.as_str()) as _,
        &failure(|failure| &failure.reason) as _,
        &failure(|failure| &failure.psp_code) as _,
        &failure(|failure| &failure.message) as _,
        &attempts,
        &uncertain as _,
        &next as _,
        &text(|order| &order.psp) as _,
        &text(|order| &order.psp_account) as _,
        &text(|order| &order.psp_reference) as _,
        &times,
        overdue_seconds,
        &finals,
    )
    .execute(&mut **tx)
    .await?;
    if updated.rows_affected() != orders.len() as u64 {
        return Err(sqlx::Error::Protocol("an order changed under its payment's lock".into()));
    }
    Ok(())
}

/// Rolls changed payments up. Counts are moved by the statement and compared with what was decided.
async fn roll_up(tx: &mut Tx, heads: &mut HashMap<Uuid, Head>, now: DateTime<Utc>) -> Result<(), sqlx::Error> {
    let changed: Vec<&mut Head> = heads.values_mut().filter(|head| head.changed).collect();
    if changed.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = changed.iter().map(|head| head.payment_id.uuid()).collect();
    let open: Vec<i32> = changed.iter().map(|head| head.tally.open).collect();
    let succeeded: Vec<i32> = changed.iter().map(|head| head.tally.succeeded).collect();
    let canceled: Vec<i32> = changed.iter().map(|head| head.tally.canceled).collect();
    let states: Vec<&str> = changed.iter().map(|head| head.tally.state().as_str()).collect();
    let rows = sqlx::query!(
        r#"
        update payments p set
            open_orders = new.open_orders, succeeded_orders = new.succeeded_orders, canceled_orders = new.canceled_orders,
            state = new.state, updated_at = $6::timestamptz, version = p.version + 1,
            completed_at = case when new.open_orders = 0 then $6::timestamptz end
        from unnest($1::uuid[], $2::integer[], $3::integer[], $4::integer[], $5::text[])
             as new (payment_id, open_orders, succeeded_orders, canceled_orders, state)
        where p.payment_id = new.payment_id and p.open_orders >= new.open_orders
        returning p.payment_id, p.version,
            (select coalesce(sum(captured), 0)::bigint from payment_orders o where o.payment_id = p.payment_id) as "captured!"
        "#,
        &ids,
        &open,
        &succeeded,
        &canceled,
        &states as _,
        now,
    )
    .fetch_all(&mut **tx)
    .await?;
    if rows.len() != changed.len() {
        return Err(sqlx::Error::Protocol("a payment changed under its lock".into()));
    }
    for row in rows {
        if let Some(head) = heads.get_mut(&row.payment_id) {
            head.version = row.version;
            head.captured = row.captured;
        }
    }
    Ok(())
}

/// Money moved for an order that had failed: recorded once, alarmed, and owed back to the buyer.
async fn record_unexpected(tx: &mut Tx, head: &Head, order: &Order, of: &ReportOf) -> Result<(), sqlx::Error> {
    let News::Succeeded { amount, psp_reference } = &of.report.news else { return Ok(()) };
    tracing::error!(paymentOrderId = %order.payment_order_id, paymentId = %order.payment_id, %amount, psp_reference,
        "the PSP took money for an order that had failed: it is owed back");
    metrics::counter!("florin_unexpected_charges_total").increment(1);
    sqlx::query!(
        r#"
        insert into unexpected_charges (charge_id, payment_order_id, merchant_id, currency, amount, psp_reference, event_id)
        values ($1, $2, $3, $4, $5, $6, $7) on conflict (charge_id) do nothing
        "#,
        order.charge_id.uuid(),
        order.payment_order_id.uuid(),
        head.merchant_id,
        amount.currency_code(),
        amount.minor_units,
        psp_reference,
        of.event_id.uuid(),
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
