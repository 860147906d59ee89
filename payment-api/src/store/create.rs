//! Creating payments.

use std::collections::HashMap;
use std::time::Duration;

use florin::error::Error;
use florin::id::PaymentId;
use florin::proto::payment::v1::PaymentCreated;
use florin::proto::psp::v1::ExecuteCharges;
use florin::{envelope, outbox, pg};
use uuid::Uuid;

use super::Store;
use crate::error::{creation_failed, key_reused};
use crate::payment::{Order, Payment};
use crate::request::FINGERPRINT_VERSION;
use crate::wire::Cause;

/// How often a batch is run again whose commit's answer was lost, or that met another transaction.
const TRIES: u32 = 5;
/// Between two of these.
const BETWEEN_TRIES: Duration = Duration::from_millis(200);

/// A payment to create, with its idempotency key. Its ids are chosen before the first try, so that every further try
/// is the same.
#[derive(Debug, Clone)]
pub struct NewPayment {
    /// The payment.
    pub payment: Payment,
    /// The caller's key.
    pub key: String,
    /// Hash of the content.
    pub fingerprint: Vec<u8>,
}

/// What became of a creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// This call made the payment.
    New,
    /// An earlier call with the same key and content made this one.
    Before(PaymentId),
}

/// The record of a key.
struct Record {
    payment_id: Uuid,
    fingerprint: Vec<u8>,
}

/// The record of a key with its scope.
struct KeyRow {
    merchant_id: String,
    idempotency_key: String,
    payment_id: Uuid,
    fingerprint: Vec<u8>,
}

impl NewPayment {
    fn scope(&self) -> (String, String) {
        (self.payment.merchant_id.clone(), self.key.clone())
    }
}

impl Store {
    /// Creates a batch of payments: one result for each, in their order.
    pub async fn create(&self, batch: Vec<NewPayment>) -> Vec<Result<Created, Error>> {
        // Of equal keys in one batch the first goes on; the others are answered as if they had come after it.
        let mut first = HashMap::new();
        for (index, new) in batch.iter().enumerate() {
            first.entry(new.scope()).or_insert(index);
        }
        let mut leaders: Vec<&NewPayment> = first.values().map(|index| &batch[*index]).collect();
        leaders.sort_by_key(|new| new.scope());
        let records = self.records(&leaders).await;
        batch.iter().map(|new| answer(new, &records)).collect()
    }

    /// The records of all keys after the batch was committed, or the error of the batch.
    async fn records(&self, leaders: &[&NewPayment]) -> HashMap<(String, String), Result<Record, Error>> {
        match self.insert_repeatedly(leaders).await {
            Ok(records) => records.into_iter().map(|(scope, record)| (scope, Ok(record))).collect(),
            // One of them is wrong: each alone, so that only the guilty fails.
            Err(error) if pg::class(&error) == pg::Class::Data && leaders.len() > 1 => {
                let mut records = HashMap::new();
                for new in leaders {
                    records.extend(Box::pin(self.records(&[new])).await);
                }
                records
            }
            Err(error) => leaders.iter().map(|new| (new.scope(), Err(creation_failed(&error)))).collect(),
        }
    }

    async fn insert_repeatedly(
        &self,
        leaders: &[&NewPayment],
    ) -> Result<HashMap<(String, String), Record>, sqlx::Error> {
        let mut tries = 1;
        loop {
            match self.insert(leaders).await {
                Err(error) if tries < TRIES && matches!(pg::class(&error), pg::Class::Conflict | pg::Class::Down) => {
                    tracing::warn!(%error, tries, "creating is tried again under the same ids");
                    tries += 1;
                    tokio::time::sleep(BETWEEN_TRIES).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// One transaction: keys, payments of the new keys, orders, outbox; then the records of the others.
    async fn insert(&self, leaders: &[&NewPayment]) -> Result<HashMap<(String, String), Record>, sqlx::Error> {
        let mut tx = pg::begin(&self.pool).await?;
        let merchants: Vec<&str> = leaders.iter().map(|new| new.payment.merchant_id.as_str()).collect();
        let keys: Vec<&str> = leaders.iter().map(|new| new.key.as_str()).collect();
        let ids: Vec<Uuid> = leaders.iter().map(|new| new.payment.payment_id.uuid()).collect();
        let fingerprints: Vec<&[u8]> = leaders.iter().map(|new| new.fingerprint.as_slice()).collect();
        let fresh: Vec<Uuid> = sqlx::query_scalar!(
            r#"
            insert into idempotency_keys (merchant_id, idempotency_key, payment_id, fingerprint, fingerprint_version)
            select merchant_id, idempotency_key, payment_id, fingerprint, $5
            from unnest($1::text[], $2::text[], $3::uuid[], $4::bytea[])
                 as new (merchant_id, idempotency_key, payment_id, fingerprint)
            order by merchant_id, idempotency_key
            on conflict do nothing
            returning payment_id
            "#,
            &merchants as _,
            &keys as _,
            &ids,
            &fingerprints as _,
            FINGERPRINT_VERSION,
        )
        .fetch_all(&mut *tx)
        .await?;
        let payments: Vec<&Payment> = leaders
            .iter()
            .map(|new| &new.payment)
            .filter(|payment| fresh.contains(&payment.payment_id.uuid()))
            .collect();
        if !payments.is_empty() {
            insert_payments(&mut tx, &payments).await?;
            insert_orders(&mut tx, &payments, self.overdue_seconds()).await?;
            outbox::insert(&mut tx, &messages(&payments)).await?;
        }
        // A second statement: the first one's snapshot would not show what its conflicts waited for.
        let records = sqlx::query_as!(
            KeyRow,
            r#"
            select merchant_id, idempotency_key, payment_id, fingerprint from idempotency_keys
            where (merchant_id, idempotency_key) in (select * from unnest($1::text[], $2::text[]))
            "#,
            &merchants as _,
            &keys as _,
        )
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        self.relay.wake();
        let record = |row: KeyRow| {
            let KeyRow { merchant_id, idempotency_key, payment_id, fingerprint } = row;
            ((merchant_id, idempotency_key), Record { payment_id, fingerprint })
        };
        Ok(records.into_iter().map(record).collect())
    }

    /// Which payment a key belongs to: for `validate_only`, which writes nothing.
    ///
    /// # Errors
    /// The key belongs to other content, or Postgres does not answer.
    pub async fn find_key(&self, new: &NewPayment) -> Result<Option<PaymentId>, Error> {
        let found = sqlx::query_as!(
            Record,
            "select payment_id, fingerprint from idempotency_keys where merchant_id = $1 and idempotency_key = $2",
            new.payment.merchant_id,
            new.key,
        );
        let found = found.fetch_optional(&self.pool).await.map_err(|error| creation_failed(&error))?;
        found.map(|record| judge(new, &record)).transpose().map(Option::flatten)
    }
}

fn answer(new: &NewPayment, records: &HashMap<(String, String), Result<Record, Error>>) -> Result<Created, Error> {
    match records.get(&new.scope()) {
        Some(Ok(record)) => Ok(judge(new, record)?.map_or(Created::New, Created::Before)),
        Some(Err(error)) => Err(error.clone()),
        None => Err(Error::internal("a key was neither written nor found")),
    }
}

/// Compares what was asked with what the key was used for. `None`: this very call used it.
fn judge(new: &NewPayment, record: &Record) -> Result<Option<PaymentId>, Error> {
    let payment_id = PaymentId::from_uuid(record.payment_id);
    if payment_id == new.payment.payment_id {
        Ok(None)
    } else if record.fingerprint == new.fingerprint {
        Ok(Some(payment_id))
    } else {
        Err(key_reused(payment_id))
    }
}

fn messages(payments: &[&Payment]) -> Vec<envelope::Outgoing> {
    let mut created = Vec::with_capacity(payments.len());
    let mut charges = Vec::with_capacity(payments.len());
    for payment in payments {
        let cause = Cause { event_id: None, traceparent: &payment.traceparent, at: payment.created_at };
        created.push(cause.created(payment));
        charges.push(cause.charges(payment, payment.orders.iter()));
    }
    let mut messages = envelope::pack::<ExecuteCharges>(charges);
    messages.extend(envelope::pack::<PaymentCreated>(created));
    messages
}

async fn insert_payments(tx: &mut pg::Tx, payments: &[&Payment]) -> Result<(), sqlx::Error> {
    let column = |of: fn(&Payment) -> &str| payments.iter().map(|payment| of(payment)).collect::<Vec<&str>>();
    let ids: Vec<Uuid> = payments.iter().map(|payment| payment.payment_id.uuid()).collect();
    let totals: Vec<i64> = payments.iter().map(|payment| payment.total.minor_units).collect();
    let counts: Vec<i32> =
        payments.iter().map(|payment| i32::try_from(payment.orders.len()).unwrap_or(i32::MAX)).collect();
    let metadata: Vec<serde_json::Value> =
        payments.iter().map(|payment| serde_json::to_value(&payment.metadata).unwrap_or_default()).collect();
    let times: Vec<_> = payments.iter().map(|payment| payment.created_at).collect();
    sqlx::query!(
        r#"
        insert into payments (payment_id, merchant_id, order_id, buyer_id, currency, total, payment_token, psp_account,
                              description, metadata, state, open_orders, order_count, traceparent, created_at, updated_at)
        select payment_id, merchant_id, order_id, buyer_id, currency, total, payment_token, psp_account, description,
               metadata, 'PENDING', order_count, order_count, traceparent, created_at, created_at
        from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[], $8::text[],
                    $9::text[], $10::jsonb[], $11::integer[], $12::text[], $13::timestamptz[])
             as new (payment_id, merchant_id, order_id, buyer_id, currency, total, payment_token, psp_account,
                     description, metadata, order_count, traceparent, created_at)
        "#,
        &ids,
        &column(|payment| &payment.merchant_id) as _,
        &column(|payment| &payment.order_id) as _,
        &column(|payment| &payment.buyer_id) as _,
        &column(|payment| payment.total.currency_code()) as _,
        &totals,
        &column(|payment| &payment.payment_token) as _,
        &column(|payment| &payment.psp_account) as _,
        &column(|payment| &payment.description) as _,
        &metadata,
        &counts,
        &column(|payment| &payment.traceparent) as _,
        &times,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn insert_orders(tx: &mut pg::Tx, payments: &[&Payment], overdue_seconds: f64) -> Result<(), sqlx::Error> {
    let orders: Vec<(i16, &str, &Order)> = payments
        .iter()
        .flat_map(|payment| {
            (0_i16..).zip(&payment.orders).map(|(line, order)| (line, payment.merchant_id.as_str(), order))
        })
        .collect();
    let column = |of: fn(&Order) -> &str| orders.iter().map(|(_, _, order)| of(order)).collect::<Vec<&str>>();
    let ids: Vec<Uuid> = orders.iter().map(|(_, _, order)| order.payment_order_id.uuid()).collect();
    let payment_ids: Vec<Uuid> = orders.iter().map(|(_, _, order)| order.payment_id.uuid()).collect();
    let lines: Vec<i16> = orders.iter().map(|(line, _, _)| *line).collect();
    let merchants: Vec<&str> = orders.iter().map(|(_, merchant, _)| *merchant).collect();
    let charge_ids: Vec<Uuid> = orders.iter().map(|(_, _, order)| order.charge_id.uuid()).collect();
    let amounts: Vec<i64> = orders.iter().map(|(_, _, order)| order.amount.minor_units).collect();
    let fees: Vec<i64> = orders.iter().map(|(_, _, order)| order.fee.minor_units).collect();
    let fee_versions: Vec<i32> = orders.iter().map(|(_, _, order)| order.fee.schedule_version).collect();
    let times: Vec<_> = orders.iter().map(|(_, _, order)| order.created_at).collect();
    sqlx::query!(
        r#"
        insert into payment_orders (payment_order_id, payment_id, line, merchant_id, order_id, buyer_id, seller_id,
                                    seller_reference, charge_id, currency, amount, fee, fee_schedule_id,
                                    fee_schedule_version, state, next_action_at, created_at, updated_at)
        select payment_order_id, payment_id, line, merchant_id, order_id, buyer_id, seller_id, seller_reference,
               charge_id, currency, amount, fee, fee_schedule_id, fee_schedule_version, 'PENDING',
               clock_timestamp() + make_interval(secs => $16), created_at, created_at
        from unnest($1::uuid[], $2::uuid[], $3::smallint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                    $9::uuid[], $10::text[], $11::bigint[], $12::bigint[], $13::text[], $14::integer[], $15::timestamptz[])
             as new (payment_order_id, payment_id, line, merchant_id, order_id, buyer_id, seller_id, seller_reference,
                     charge_id, currency, amount, fee, fee_schedule_id, fee_schedule_version, created_at)
        "#,
        &ids,
        &payment_ids,
        &lines,
        &merchants as _,
        &column(|order| &order.order_id) as _,
        &column(|order| &order.buyer_id) as _,
        &column(|order| &order.seller_id) as _,
        &column(|order| &order.seller_reference) as _,
        &charge_ids,
        &column(|order| order.amount.currency_code()) as _,
        &amounts,
        &fees,
        &column(|order| &order.fee.schedule_id) as _,
        &fee_versions,
        &times,
        overdue_seconds,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
