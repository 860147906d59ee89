//! Claiming due charges.

use std::time::Duration;

use florin::id::AttemptId;
use florin::pg::{self, Tx};
use uuid::Uuid;

use super::Store;
use super::read::ChargeRow;
use crate::attempt::{Action, Charge};

impl Store {
    /// Claims up to `limit` due charges in a transaction of its own.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn claim(&self, action: Action, limit: i64) -> Result<Vec<Charge>, sqlx::Error> {
        let mut tx = pg::begin(&self.pool).await?;
        let claimed = self.claim_in_tx(&mut tx, action, limit).await?;
        if claimed.is_empty() {
            tx.rollback().await?;
        } else {
            tx.commit().await?;
        }
        Ok(claimed)
    }

    /// Turns planned calls whose key is this old into look-ups: the PSP may forget the key, and a forgotten key charges
    /// again. Answers how many.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn retire_old_keys(&self, age: Duration) -> Result<u64, sqlx::Error> {
        let retired = sqlx::query!(
            r#"
            update charges set next_action = 'INQUIRE', next_action_at = clock_timestamp(), version = version + 1
            where next_action = 'CHARGE' and key_since < clock_timestamp() - make_interval(secs => $1)
            "#,
            age.as_secs_f64(),
        );
        Ok(retired.execute(&self.pool).await?.rows_affected())
    }

    /// Claims up to `limit` due charges. A claim to charge commits its attempt: only then may the PSP be called.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn claim_in_tx(&self, tx: &mut Tx, action: Action, limit: i64) -> Result<Vec<Charge>, sqlx::Error> {
        let lease = match action {
            Action::Charge => self.leases.charge,
            Action::Inquire => self.leases.inquiry,
        };
        let rows = sqlx::query_as!(
            ChargeRow,
            r#"
            with due as (
                select charge_id from charges
                where next_action = $1 and next_action_at <= clock_timestamp()
                  -- A key this old is never used again, whoever retires it first.
                  and ($1 = 'INQUIRE' or key_since is null or key_since > clock_timestamp() - make_interval(secs => $4))
                order by next_action_at limit $2 for update skip locked
            )
            update charges set
                lease_epoch = lease_epoch + 1,
                next_action = 'INQUIRE',
                next_action_at = clock_timestamp() + make_interval(secs => $3),
                -- An inquiry that finds a call under way finds one whose worker died: nobody knows since it left.
                uncertain_since = case when in_call and $1 = 'INQUIRE' then coalesce(uncertain_since, last_sent_at)
                                       else uncertain_since end,
                in_call = $1 = 'CHARGE',
                attempt_count = attempt_count + case when $1 = 'CHARGE' then 1 else 0 end,
                last_sent_at = case when $1 = 'CHARGE' then clock_timestamp() else last_sent_at end,
                key_since = case when $1 = 'CHARGE' then coalesce(key_since, clock_timestamp()) else key_since end
            where charge_id in (select charge_id from due)
            returning charge_id, payment_order_id, payment_id, merchant_id, order_id, seller_id, currency, amount,
                      payment_token, psp_account, state, next_action, next_action_at, lease_epoch, generation, key_since,
                      attempt_count, retry_count, hold_count, inquiry_count, inquiry_round, last_sent_at,
                      uncertain_since, psp_reference, failure_reason, failure_code, failure_message, event_id,
                      traceparent, created_at, updated_at, version, clock_timestamp() as "read_at!"
            "#,
            action.as_str(),
            limit,
            lease.as_secs_f64(),
            self.leases.oldest_key.as_secs_f64(),
        )
        .fetch_all(&mut **tx)
        .await?;
        let charges = rows.into_iter().map(ChargeRow::charge).collect::<Result<Vec<Charge>, _>>()?;
        if action == Action::Charge {
            for charge in charges.iter().filter(|charge| charge.attempt_count == 1) {
                let waited =
                    charge.last_sent_at.map(|sent_at| (sent_at - charge.created_at).to_std().unwrap_or_default());
                metrics::histogram!("florin_psp_queue_seconds").record(waited.unwrap_or_default().as_secs_f64());
            }
            insert_attempts(tx, &charges).await?;
        }
        Ok(charges)
    }
}

async fn insert_attempts(tx: &mut Tx, charges: &[Charge]) -> Result<(), sqlx::Error> {
    let charge_ids: Vec<Uuid> = charges.iter().map(|charge| charge.charge_id.uuid()).collect();
    let numbers: Vec<i32> = charges.iter().map(|charge| charge.attempt_count).collect();
    let ids: Vec<Uuid> = charges.iter().map(|_| AttemptId::new().uuid()).collect();
    let generations: Vec<i32> = charges.iter().map(|charge| charge.generation).collect();
    sqlx::query!(
        r#"
        insert into attempts (charge_id, attempt_number, attempt_id, generation, state)
        select charge_id, attempt_number, attempt_id, generation, 'SENT'
        from unnest($1::uuid[], $2::integer[], $3::uuid[], $4::integer[])
             as new (charge_id, attempt_number, attempt_id, generation)
        order by charge_id
        "#,
        &charge_ids,
        &numbers,
        &ids,
        &generations,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
