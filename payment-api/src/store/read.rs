//! Reading payments and payment orders, within one merchant.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use florin::error::Error;
use florin::id::{ChargeId, PaymentId, PaymentOrderId};
use florin::money::{Currency, Money};
use florin::ops::read_failed;
use florin::pg;
use uuid::Uuid;

use super::Store;
use crate::fee::{Fee, Schedule};
use crate::payment::{Failure, Order, Payment};
use crate::watch::Signal;

/// Which payments to list. What is not set does not filter; no states means any.
#[derive(Debug, Clone, Default)]
pub struct PaymentFilter {
    /// Of this order.
    pub order_id: Option<String>,
    /// Of this buyer.
    pub buyer_id: Option<String>,
    /// With a part for this seller.
    pub seller_id: Option<String>,
    /// In one of these states.
    pub states: Vec<String>,
    /// Accepted at or after.
    pub from: Option<DateTime<Utc>>,
    /// Accepted before.
    pub to: Option<DateTime<Utc>>,
}

/// Which payment orders to list. What is not set does not filter; no states means any.
#[derive(Debug, Clone, Default)]
pub struct OrderFilter {
    /// Of this seller.
    pub seller_id: Option<String>,
    /// In one of these states.
    pub states: Vec<String>,
    /// Accepted at or after.
    pub from: Option<DateTime<Utc>>,
    /// Accepted before.
    pub to: Option<DateTime<Utc>>,
    /// Only those of which nobody knows whether money moved.
    pub uncertain: bool,
}

/// A row of `payments`.
pub(super) struct PaymentRow {
    payment_id: Uuid,
    merchant_id: String,
    order_id: String,
    buyer_id: String,
    currency: String,
    total: i64,
    payment_token: String,
    psp_account: String,
    description: String,
    metadata: serde_json::Value,
    state: String,
    traceparent: String,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    completed_at: Option<DateTime<Utc>>,
    version: i64,
}

/// A row of `payment_orders`.
pub(super) struct OrderRow {
    pub(super) payment_order_id: Uuid,
    pub(super) payment_id: Uuid,
    pub(super) order_id: String,
    pub(super) buyer_id: String,
    pub(super) seller_id: String,
    pub(super) seller_reference: String,
    pub(super) charge_id: Uuid,
    pub(super) currency: String,
    pub(super) amount: i64,
    pub(super) fee: i64,
    pub(super) fee_schedule_id: String,
    pub(super) fee_schedule_version: i32,
    pub(super) state: String,
    pub(super) captured: i64,
    pub(super) failure_reason: Option<String>,
    pub(super) failure_code: Option<String>,
    pub(super) failure_message: Option<String>,
    pub(super) attempt_count: i32,
    pub(super) uncertain_since: Option<DateTime<Utc>>,
    pub(super) next_psp_action_at: Option<DateTime<Utc>>,
    pub(super) psp: String,
    pub(super) psp_account: String,
    pub(super) psp_reference: String,
    pub(super) charge_version: i64,
    pub(super) created_at: DateTime<Utc>,
    pub(super) updated_at: DateTime<Utc>,
    pub(super) version: i64,
}

pub(super) fn currency(code: &str) -> Result<Currency, sqlx::Error> {
    code.parse().map_err(pg::undecodable)
}

impl OrderRow {
    pub(super) fn order(self) -> Result<Order, sqlx::Error> {
        let failure = self.failure_reason.map(|reason| Failure {
            reason,
            psp_code: self.failure_code.unwrap_or_default(),
            message: self.failure_message.unwrap_or_default(),
        });
        Ok(Order {
            payment_order_id: PaymentOrderId::from_uuid(self.payment_order_id),
            payment_id: PaymentId::from_uuid(self.payment_id),
            order_id: self.order_id,
            buyer_id: self.buyer_id,
            seller_id: self.seller_id,
            seller_reference: self.seller_reference,
            charge_id: ChargeId::from_uuid(self.charge_id),
            amount: Money::new(currency(&self.currency)?, self.amount),
            fee: Fee {
                minor_units: self.fee,
                schedule_id: self.fee_schedule_id,
                schedule_version: self.fee_schedule_version,
            },
            state: self.state.parse().map_err(pg::undecodable)?,
            captured: self.captured,
            failure,
            attempt_count: self.attempt_count,
            uncertain_since: self.uncertain_since,
            next_psp_action_at: self.next_psp_action_at,
            psp: self.psp,
            psp_account: self.psp_account,
            psp_reference: self.psp_reference,
            charge_version: self.charge_version,
            created_at: self.created_at,
            updated_at: self.updated_at,
            version: self.version,
        })
    }
}

impl PaymentRow {
    fn payment(self, orders: Vec<Order>) -> Result<Payment, sqlx::Error> {
        let metadata: BTreeMap<String, String> = serde_json::from_value(self.metadata).map_err(pg::undecodable)?;
        Ok(Payment {
            payment_id: PaymentId::from_uuid(self.payment_id),
            merchant_id: self.merchant_id,
            order_id: self.order_id,
            buyer_id: self.buyer_id,
            total: Money::new(currency(&self.currency)?, self.total),
            payment_token: self.payment_token,
            psp_account: self.psp_account,
            description: self.description,
            metadata,
            state: self.state.parse().map_err(pg::undecodable)?,
            traceparent: self.traceparent,
            created_at: self.created_at,
            updated_at: self.updated_at,
            completed_at: self.completed_at,
            version: self.version,
            orders,
        })
    }
}

impl Store {
    /// A payment of this merchant.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn payment(&self, merchant: &str, id: PaymentId) -> Result<Option<Payment>, Error> {
        let payments = self.payments_by_id(&[id.uuid()]).await.map_err(read_failed)?;
        Ok(payments.into_iter().find(|payment| payment.merchant_id == merchant))
    }

    /// Payments by their ids, of any merchant, newest first.
    pub(crate) async fn payments_by_id(&self, ids: &[Uuid]) -> Result<Vec<Payment>, sqlx::Error> {
        let rows = sqlx::query_as!(
            PaymentRow,
            r#"
            select payment_id, merchant_id, order_id, buyer_id, currency, total, payment_token, psp_account, description,
                   metadata, state, traceparent, created_at, updated_at, completed_at, version
            from payments where payment_id = any($1) order by payment_id desc
            "#,
            ids,
        );
        self.with_orders(rows.fetch_all(&self.pool).await?).await
    }

    /// Payments of this merchant before `before`, newest first.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn payments(
        &self,
        merchant: &str,
        filter: &PaymentFilter,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<Payment>, Error> {
        let rows = sqlx::query_as!(
            PaymentRow,
            r#"
            select payment_id, merchant_id, order_id, buyer_id, currency, total, payment_token, psp_account, description,
                   metadata, state, traceparent, created_at, updated_at, completed_at, version
            from payments
            where merchant_id = $1
              and ($2::uuid is null or payment_id < $2)
              and ($3::text is null or order_id = $3)
              and ($4::text is null or buyer_id = $4)
              and ($5::text is null or exists (
                      select from payment_orders o where o.payment_id = payments.payment_id and o.seller_id = $5))
              and (cardinality($6::text[]) = 0 or state = any($6))
              and ($7::timestamptz is null or created_at >= $7)
              and ($8::timestamptz is null or created_at < $8)
            order by payment_id desc limit $9
            "#,
            merchant,
            before,
            filter.order_id,
            filter.buyer_id,
            filter.seller_id,
            &filter.states,
            filter.from,
            filter.to,
            limit,
        );
        let rows = rows.fetch_all(&self.pool).await.map_err(read_failed)?;
        self.with_orders(rows).await.map_err(read_failed)
    }

    /// The orders of these payments, in one statement.
    async fn with_orders(&self, rows: Vec<PaymentRow>) -> Result<Vec<Payment>, sqlx::Error> {
        let ids: Vec<Uuid> = rows.iter().map(|row| row.payment_id).collect();
        let orders = sqlx::query_as!(
            OrderRow,
            r#"
            select payment_order_id, payment_id, order_id, buyer_id, seller_id, seller_reference, charge_id, currency,
                   amount, fee, fee_schedule_id, fee_schedule_version, state, captured, failure_reason, failure_code,
                   failure_message, attempt_count, uncertain_since, next_psp_action_at, psp, psp_account, psp_reference,
                   charge_version, created_at, updated_at, version
            from payment_orders where payment_id = any($1) order by payment_id, line
            "#,
            &ids,
        );
        let mut of: HashMap<Uuid, Vec<Order>> = HashMap::new();
        for row in orders.fetch_all(&self.pool).await? {
            of.entry(row.payment_id).or_default().push(row.order()?);
        }
        rows.into_iter()
            .map(|row| {
                let orders = of.remove(&row.payment_id).unwrap_or_default();
                row.payment(orders)
            })
            .collect()
    }

    /// Payment orders of this merchant before `before`, newest first; only this one where `id` is given.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn orders(
        &self,
        merchant: &str,
        id: Option<PaymentOrderId>,
        filter: &OrderFilter,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<Order>, Error> {
        let rows = sqlx::query_as!(
            OrderRow,
            r#"
            select payment_order_id, payment_id, order_id, buyer_id, seller_id, seller_reference, charge_id, currency,
                   amount, fee, fee_schedule_id, fee_schedule_version, state, captured, failure_reason, failure_code,
                   failure_message, attempt_count, uncertain_since, next_psp_action_at, psp, psp_account, psp_reference,
                   charge_version, created_at, updated_at, version
            from payment_orders
            where merchant_id = $1
              and ($2::uuid is null or payment_order_id = $2)
              and ($3::uuid is null or payment_order_id < $3)
              and ($4::text is null or seller_id = $4)
              and (cardinality($5::text[]) = 0 or state = any($5))
              and ($6::timestamptz is null or created_at >= $6)
              and ($7::timestamptz is null or created_at < $7)
              and (not $8 or uncertain_since is not null)
            order by payment_order_id desc limit $9
            "#,
            merchant,
            id.map(PaymentOrderId::uuid),
            before,
            filter.seller_id,
            &filter.states,
            filter.from,
            filter.to,
            filter.uncertain,
            limit,
        );
        let rows = rows.fetch_all(&self.pool).await.map_err(read_failed)?;
        rows.into_iter().map(|row| row.order().map_err(read_failed)).collect()
    }

    /// Version and end of these payments: one statement for all that are watched.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn signals(&self, ids: &[Uuid]) -> Result<Vec<(PaymentId, Signal)>, sqlx::Error> {
        let rows = sqlx::query!(
            r#"select payment_id, version, completed_at is not null as "is_final!" from payments where payment_id = any($1)"#,
            ids,
        );
        let rows = rows.fetch_all(&self.pool).await?;
        Ok(rows
            .into_iter()
            .map(|row| (PaymentId::from_uuid(row.payment_id), Signal { version: row.version, is_final: row.is_final }))
            .collect())
    }

    /// All fee schedules.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn fee_schedules(&self) -> Result<Vec<Schedule>, sqlx::Error> {
        sqlx::query_as!(
            Schedule,
            r#"
            select schedule_id, version, merchant_id, seller_id, currency, basis_points, fixed, minimum, maximum,
                   greatest(effective_from, '0001-01-01') as "effective_from!"
            from fee_schedules
            "#
        )
        .fetch_all(&self.pool)
        .await
    }
}
