//! Accepting charges and writing results.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use florin::envelope::{self, Outgoing};
use florin::id::EventId;
use florin::outbox;
use florin::pg::{self, Tx};
use florin::proto::psp::v1::{ChargesCompleted, ChargesProgressed};
use uuid::Uuid;

use super::Store;
use crate::attempt::{Action, AttemptState, Charge, ChargeState, Verdict};
use crate::wire;

/// A charge to accept.
#[derive(Debug, Clone)]
pub struct NewCharge {
    /// Its id.
    pub charge_id: Uuid,
    /// The payment order.
    pub payment_order_id: Uuid,
    /// The payment.
    pub payment_id: Uuid,
    /// The merchant.
    pub merchant_id: String,
    /// The merchant's id of the order.
    pub order_id: String,
    /// The merchant's id of the seller.
    pub seller_id: String,
    /// What to charge.
    pub amount: florin::money::Money,
    /// The PSP's token.
    pub payment_token: String,
    /// The account at the PSP.
    pub psp_account: String,
    /// The event that asked.
    pub event_id: EventId,
    /// Trace context.
    pub traceparent: String,
}

/// A charge after an answer, to be written under the epoch of its claim.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The charge as the answer left it.
    pub charge: Charge,
    /// What was done.
    pub action: Action,
    /// What the answer did.
    pub verdict: Verdict,
    /// Name of `InquiryResult` of a look-up.
    pub inquiry_result: &'static str,
    /// When the call or look-up left.
    pub sent_at: DateTime<Utc>,
}

impl Store {
    /// Accepts charges, due at once. One that is known already is left alone; where it has ended, its end is told
    /// again: whoever asks has not heard of it.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn accept(&self, tx: &mut Tx, new: &[NewCharge]) -> Result<(), sqlx::Error> {
        let text = |of: fn(&NewCharge) -> &str| new.iter().map(of).collect::<Vec<&str>>();
        let ids: Vec<Uuid> = new.iter().map(|charge| charge.charge_id).collect();
        let orders: Vec<Uuid> = new.iter().map(|charge| charge.payment_order_id).collect();
        let payments: Vec<Uuid> = new.iter().map(|charge| charge.payment_id).collect();
        let amounts: Vec<i64> = new.iter().map(|charge| charge.amount.minor_units).collect();
        let events: Vec<Uuid> = new.iter().map(|charge| charge.event_id.uuid()).collect();
        let accepted: Vec<Uuid> = sqlx::query_scalar!(
            r#"
            insert into charges (charge_id, payment_order_id, payment_id, merchant_id, order_id, seller_id, currency,
                                 amount, payment_token, psp_account, event_id, traceparent, next_action, next_action_at)
            select *, 'CHARGE', clock_timestamp()
            from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bigint[],
                        $9::text[], $10::text[], $11::uuid[], $12::text[])
                 as new (charge_id, payment_order_id, payment_id, merchant_id, order_id, seller_id, currency, amount,
                         payment_token, psp_account, event_id, traceparent)
            order by charge_id
            on conflict (charge_id) do nothing
            returning charge_id
            "#,
            &ids,
            &orders,
            &payments,
            &text(|charge| &charge.merchant_id) as _,
            &text(|charge| &charge.order_id) as _,
            &text(|charge| &charge.seller_id) as _,
            &text(|charge| charge.amount.currency_code()) as _,
            &amounts,
            &text(|charge| &charge.payment_token) as _,
            &text(|charge| &charge.psp_account) as _,
            &events,
            &text(|charge| &charge.traceparent) as _,
        )
        .fetch_all(&mut **tx)
        .await?;
        let accepted: HashSet<Uuid> = accepted.into_iter().collect();
        let known: Vec<Uuid> = ids.into_iter().filter(|id| !accepted.contains(id)).collect();
        if known.is_empty() {
            return Ok(());
        }
        let known = self.charges_in_tx(tx, &known).await?;
        outbox::insert(tx, &news(known.iter())).await
    }

    /// Writes results: charges under their epoch, attempts, inquiries, outbox. Answers the due times of what goes on,
    /// in milliseconds since 1970. Results of a claim that another process has taken over are dropped: its successor
    /// looks the truth up.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn record(&self, results: &[Judged]) -> Result<Vec<(i64, String)>, sqlx::Error> {
        let mut tx = pg::begin(&self.pool).await?;
        let due = update_charges(&mut tx, results).await?;
        let mut written = Vec::with_capacity(results.len());
        for judged in results {
            if let Some(next) = due.get(&judged.charge.charge_id.uuid()) {
                let charge = Charge { next_action_at: *next, ..judged.charge.clone() };
                written.push(Judged { charge, ..judged.clone() });
            } else {
                tracing::warn!(chargeId = %judged.charge.charge_id, "a result came after its lease; dropped");
                metrics::counter!("florin_stale_results_total").increment(1);
            }
        }
        update_attempts(&mut tx, &written).await?;
        insert_inquiries(&mut tx, &written).await?;
        outbox::insert(&mut tx, &news(written.iter().map(|judged| &judged.charge))).await?;
        tx.commit().await?;
        self.relay.wake();
        let alarms = written.iter().filter_map(|judged| {
            Some((judged.charge.next_action_at?.timestamp_millis(), judged.charge.charge_id.to_string()))
        });
        Ok(alarms.collect())
    }
}

/// What the world is told of charges: their end, or what is done next.
fn news<'a>(charges: impl Iterator<Item = &'a Charge>) -> Vec<Outgoing> {
    let mut completed = Vec::new();
    let mut progressed = Vec::new();
    for charge in charges {
        match charge.state {
            ChargeState::Succeeded | ChargeState::Failed => completed.push(wire::completed(charge)),
            ChargeState::Open | ChargeState::Review => progressed.push(wire::progressed(charge)),
        }
    }
    let mut messages = envelope::pack::<ChargesCompleted>(completed);
    messages.extend(envelope::pack::<ChargesProgressed>(progressed));
    messages
}

/// Writes charges under their epoch; answers those that were, with their next due time by the database's clock.
async fn update_charges(tx: &mut Tx, results: &[Judged]) -> Result<HashMap<Uuid, Option<DateTime<Utc>>>, sqlx::Error> {
    let ids: Vec<Uuid> = results.iter().map(|judged| judged.charge.charge_id.uuid()).collect();
    let epochs: Vec<i64> = results.iter().map(|judged| judged.charge.lease_epoch).collect();
    let states: Vec<&str> = results.iter().map(|judged| judged.charge.state.as_str()).collect();
    let actions: Vec<Option<&str>> =
        results.iter().map(|judged| judged.charge.next_action.map(Action::as_str)).collect();
    let delays: Vec<Option<f64>> =
        results.iter().map(|judged| judged.verdict.delay.map(|delay| delay.as_secs_f64())).collect();
    let generations: Vec<i32> = results.iter().map(|judged| judged.charge.generation).collect();
    let keys: Vec<Option<DateTime<Utc>>> = results.iter().map(|judged| judged.charge.key_since).collect();
    let retries: Vec<i32> = results.iter().map(|judged| judged.charge.retry_count).collect();
    let holds: Vec<i32> = results.iter().map(|judged| judged.charge.hold_count).collect();
    let inquiries: Vec<i32> = results.iter().map(|judged| judged.charge.inquiry_count).collect();
    let rounds: Vec<i32> = results.iter().map(|judged| judged.charge.inquiry_round).collect();
    let uncertain: Vec<Option<DateTime<Utc>>> = results.iter().map(|judged| judged.charge.uncertain_since).collect();
    let references: Vec<&str> = results.iter().map(|judged| judged.charge.psp_reference.as_str()).collect();
    let failure = |of: fn(&crate::attempt::Failure) -> &str| {
        results.iter().map(|judged| judged.charge.failure.as_ref().map(of)).collect::<Vec<Option<&str>>>()
    };
    let versions: Vec<i64> = results.iter().map(|judged| judged.charge.version).collect();
    let rows = sqlx::query!(
        r#"
        update charges c set
            state = new.state, next_action = new.next_action,
            next_action_at = clock_timestamp() + make_interval(secs => new.delay),
            in_call = false, generation = new.generation, key_since = new.key_since, retry_count = new.retry_count,
            hold_count = new.hold_count, inquiry_count = new.inquiry_count, inquiry_round = new.inquiry_round,
            uncertain_since = new.uncertain_since, psp_reference = new.psp_reference,
            failure_reason = new.failure_reason, failure_code = new.failure_code,
            failure_message = new.failure_message, version = new.version, updated_at = clock_timestamp()
        from (select * from unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::float8[], $6::integer[],
                    $7::timestamptz[], $8::integer[], $9::integer[], $10::integer[], $11::integer[], $12::timestamptz[],
                    $13::text[], $14::text[], $15::text[], $16::text[], $17::bigint[])
             as r (charge_id, lease_epoch, state, next_action, delay, generation, key_since, retry_count, hold_count,
                     inquiry_count, inquiry_round, uncertain_since, psp_reference, failure_reason, failure_code,
                     failure_message, version) order by charge_id) as new
        where c.charge_id = new.charge_id and c.lease_epoch = new.lease_epoch and c.state = 'OPEN'
        returning c.charge_id, c.next_action_at
        "#,
        &ids,
        &epochs,
        &states as _,
        &actions as _,
        &delays as _,
        &generations,
        &keys as _,
        &retries,
        &holds,
        &inquiries,
        &rounds,
        &uncertain as _,
        &references as _,
        &failure(|failure| &failure.reason) as _,
        &failure(|failure| &failure.code) as _,
        &failure(|failure| &failure.message) as _,
        &versions,
    )
    .fetch_all(&mut **tx)
    .await?;
    Ok(rows.into_iter().map(|row| (row.charge_id, row.next_action_at)).collect())
}

/// The latest attempt of each charge learns what became of it, by its own answer or by a look-up.
async fn update_attempts(tx: &mut Tx, results: &[Judged]) -> Result<(), sqlx::Error> {
    let ids: Vec<Uuid> = results.iter().map(|judged| judged.charge.charge_id.uuid()).collect();
    let numbers: Vec<i32> = results.iter().map(|judged| judged.charge.attempt_count).collect();
    let states: Vec<&str> = results.iter().map(|judged| AttemptState::as_str(judged.verdict.attempt)).collect();
    let codes: Vec<&str> = results.iter().map(|judged| judged.verdict.code.as_str()).collect();
    let messages: Vec<&str> = results.iter().map(|judged| judged.verdict.message.as_str()).collect();
    sqlx::query!(
        r#"
        update attempts a set state = new.state, code = new.code, message = new.message, finished_at = clock_timestamp()
        from unnest($1::uuid[], $2::integer[], $3::text[], $4::text[], $5::text[])
             as new (charge_id, attempt_number, state, code, message)
        where a.charge_id = new.charge_id and a.attempt_number = new.attempt_number
        "#,
        &ids,
        &numbers,
        &states as _,
        &codes as _,
        &messages as _,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn insert_inquiries(tx: &mut Tx, results: &[Judged]) -> Result<(), sqlx::Error> {
    let asked: Vec<&Judged> = results.iter().filter(|judged| judged.action == Action::Inquire).collect();
    if asked.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = asked.iter().map(|judged| judged.charge.charge_id.uuid()).collect();
    let numbers: Vec<i32> = asked.iter().map(|judged| judged.charge.inquiry_count).collect();
    let found: Vec<&str> = asked.iter().map(|judged| judged.inquiry_result).collect();
    let codes: Vec<&str> = asked.iter().map(|judged| judged.verdict.code.as_str()).collect();
    let times: Vec<DateTime<Utc>> = asked.iter().map(|judged| judged.sent_at).collect();
    sqlx::query!(
        r#"
        insert into inquiries (charge_id, inquiry_number, result, code, sent_at)
        select * from unnest($1::uuid[], $2::integer[], $3::text[], $4::text[], $5::timestamptz[])
        "#,
        &ids,
        &numbers,
        &found as _,
        &codes as _,
        &times,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
