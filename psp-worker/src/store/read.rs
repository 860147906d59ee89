//! Reading charges.

use chrono::{DateTime, Utc};
use florin::error::Error;
use florin::id::{ChargeId, EventId, PaymentId, PaymentOrderId};
use florin::money::{Currency, Money};
use florin::ops::read_failed;
use florin::pg::{self, Tx};
use uuid::Uuid;

use super::Store;
use crate::attempt::{Charge, Failure};

/// A row of `charges`.
pub(super) struct ChargeRow {
    pub(super) charge_id: Uuid,
    pub(super) payment_order_id: Uuid,
    pub(super) payment_id: Uuid,
    pub(super) merchant_id: String,
    pub(super) order_id: String,
    pub(super) seller_id: String,
    pub(super) currency: String,
    pub(super) amount: i64,
    pub(super) payment_token: String,
    pub(super) psp_account: String,
    pub(super) state: String,
    pub(super) next_action: Option<String>,
    pub(super) next_action_at: Option<DateTime<Utc>>,
    pub(super) lease_epoch: i64,
    pub(super) generation: i32,
    pub(super) key_since: Option<DateTime<Utc>>,
    pub(super) attempt_count: i32,
    pub(super) retry_count: i32,
    pub(super) hold_count: i32,
    pub(super) inquiry_count: i32,
    pub(super) inquiry_round: i32,
    pub(super) last_sent_at: Option<DateTime<Utc>>,
    pub(super) uncertain_since: Option<DateTime<Utc>>,
    pub(super) psp_reference: String,
    pub(super) failure_reason: Option<String>,
    pub(super) failure_code: Option<String>,
    pub(super) failure_message: Option<String>,
    pub(super) event_id: Uuid,
    pub(super) traceparent: String,
    pub(super) created_at: DateTime<Utc>,
    pub(super) updated_at: DateTime<Utc>,
    pub(super) version: i64,
    pub(super) read_at: DateTime<Utc>,
}

/// A row of `attempts`.
#[derive(Debug, Clone)]
pub struct AttemptRow {
    /// Its id.
    pub attempt_id: Uuid,
    /// Counts from 1.
    pub attempt_number: i32,
    /// Of the key that it carried.
    pub generation: i32,
    /// What became of it.
    pub state: String,
    /// The PSP's code.
    pub code: String,
    /// For people.
    pub message: String,
    /// When it was committed.
    pub sent_at: DateTime<Utc>,
    /// When its state last changed.
    pub finished_at: Option<DateTime<Utc>>,
}

/// A row of `inquiries`.
#[derive(Debug, Clone)]
pub struct InquiryRow {
    /// Counts from 1.
    pub inquiry_number: i32,
    /// What it found.
    pub result: String,
    /// The PSP's code.
    pub code: String,
    /// When it was asked.
    pub sent_at: DateTime<Utc>,
}

/// How much is uncertain.
#[derive(Debug, Clone)]
pub struct Uncertain {
    /// Charges of which nobody knows whether money moved.
    pub charges: i64,
    /// For how many seconds the oldest has been.
    pub oldest_seconds: f64,
    /// Charges that wait for an operator because the PSP's amount is not ours.
    pub reviews: i64,
    /// Charges that wait for a retry.
    pub retries: i64,
}

impl ChargeRow {
    pub(super) fn charge(self) -> Result<Charge, sqlx::Error> {
        let currency: Currency = self.currency.parse().map_err(pg::undecodable)?;
        let failure = self.failure_reason.map(|reason| Failure {
            reason,
            code: self.failure_code.unwrap_or_default(),
            message: self.failure_message.unwrap_or_default(),
        });
        Ok(Charge {
            charge_id: ChargeId::from_uuid(self.charge_id),
            payment_order_id: PaymentOrderId::from_uuid(self.payment_order_id),
            payment_id: PaymentId::from_uuid(self.payment_id),
            merchant_id: self.merchant_id,
            order_id: self.order_id,
            seller_id: self.seller_id,
            amount: Money::new(currency, self.amount),
            payment_token: self.payment_token,
            psp_account: self.psp_account,
            state: self.state.parse().map_err(pg::undecodable)?,
            next_action: self.next_action.map(|action| action.parse()).transpose().map_err(pg::undecodable)?,
            next_action_at: self.next_action_at,
            lease_epoch: self.lease_epoch,
            generation: self.generation,
            key_since: self.key_since,
            attempt_count: self.attempt_count,
            retry_count: self.retry_count,
            hold_count: self.hold_count,
            inquiry_count: self.inquiry_count,
            inquiry_round: self.inquiry_round,
            last_sent_at: self.last_sent_at,
            uncertain_since: self.uncertain_since,
            psp_reference: self.psp_reference,
            failure,
            event_id: EventId::from_uuid(self.event_id),
            traceparent: self.traceparent,
            created_at: self.created_at,
            updated_at: self.updated_at,
            version: self.version,
            read_at: self.read_at,
        })
    }
}

impl Store {
    /// The charge of a payment order with its attempts and inquiries.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn charge(
        &self,
        merchant: &str,
        id: PaymentOrderId,
    ) -> Result<Option<(Charge, Vec<AttemptRow>, Vec<InquiryRow>)>, Error> {
        let row = sqlx::query_as!(
            ChargeRow,
            r#"
            select charge_id, payment_order_id, payment_id, merchant_id, order_id, seller_id, currency, amount,
                   payment_token, psp_account, state, next_action, next_action_at, lease_epoch, generation, key_since,
                   attempt_count, retry_count, hold_count, inquiry_count, inquiry_round, last_sent_at, uncertain_since,
                   psp_reference, failure_reason, failure_code, failure_message, event_id, traceparent, created_at,
                   updated_at, version, clock_timestamp() as "read_at!"
            from charges where merchant_id = $1 and payment_order_id = $2
            "#,
            merchant,
            id.uuid(),
        );
        let Some(row) = row.fetch_optional(&self.pool).await.map_err(read_failed)? else { return Ok(None) };
        let charge = row.charge().map_err(read_failed)?;
        let attempts = sqlx::query_as!(
            AttemptRow,
            r#"
            select attempt_id, attempt_number, generation, state, code, message, sent_at, finished_at
            from attempts where charge_id = $1 order by attempt_number
            "#,
            charge.charge_id.uuid(),
        );
        let inquiries = sqlx::query_as!(
            InquiryRow,
            "select inquiry_number, result, code, sent_at from inquiries where charge_id = $1 order by inquiry_number",
            charge.charge_id.uuid(),
        );
        let attempts = attempts.fetch_all(&self.pool).await.map_err(read_failed)?;
        let inquiries = inquiries.fetch_all(&self.pool).await.map_err(read_failed)?;
        Ok(Some((charge, attempts, inquiries)))
    }

    /// Charges by their ids.
    pub(super) async fn charges_in_tx(&self, tx: &mut Tx, ids: &[Uuid]) -> Result<Vec<Charge>, sqlx::Error> {
        let rows = sqlx::query_as!(
            ChargeRow,
            r#"
            select charge_id, payment_order_id, payment_id, merchant_id, order_id, seller_id, currency, amount,
                   payment_token, psp_account, state, next_action, next_action_at, lease_epoch, generation, key_since,
                   attempt_count, retry_count, hold_count, inquiry_count, inquiry_round, last_sent_at, uncertain_since,
                   psp_reference, failure_reason, failure_code, failure_message, event_id, traceparent, created_at,
                   updated_at, version, clock_timestamp() as "read_at!"
            from charges where charge_id = any($1)
            "#,
            ids,
        );
        rows.fetch_all(&mut **tx).await?.into_iter().map(ChargeRow::charge).collect()
    }

    /// How much is uncertain, for operators.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn uncertain(&self) -> Result<Uncertain, sqlx::Error> {
        sqlx::query_as!(
            Uncertain,
            r#"
            select count(*) filter (where uncertain_since is not null) as "charges!",
                   coalesce(extract(epoch from clock_timestamp() - min(uncertain_since)), 0)::float8 as "oldest_seconds!",
                   count(*) filter (where state = 'REVIEW') as "reviews!",
                   (select count(*) from charges where next_action = 'CHARGE' and attempt_count > 0) as "retries!"
            from charges where uncertain_since is not null or state = 'REVIEW'
            "#
        )
        .fetch_one(&self.pool)
        .await
    }
}
