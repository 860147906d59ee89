//! Messages that nobody should send, and rows that nobody may change.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream;
use bytes::Bytes;
use e2e::{eventually, keyed, order};
use florin::envelope::header;
use florin::id::{ChargeId, EventId, PaymentId, PaymentOrderId};
use florin::proto::common::v1::{FactContext, Money};
use florin::proto::ops::v1 as ops;
use florin::proto::psp::v1 as psp;
use prost::Message as _;
use sqlx::{AssertSqlSafe, Connection as _};
use uuid::Uuid;

use crate::shared::connection;

/// Publishes a message as psp-worker would.
async fn publish(event_id: &str, message_type: &str, body: Vec<u8>) {
    let nats = async_nats::connect(connection().address("FLORIN_NATS_URL").unwrap()).await.unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(header::ID, event_id);
    headers.insert(header::TYPE, message_type);
    let subject = "florin.psp-worker.v1.ChargesCompleted.0";
    // The context has to outlive the acknowledgement.
    let js = jetstream::new(nats);
    let acknowledged = js.publish_with_headers(subject, headers, Bytes::from(body)).await.unwrap();
    acknowledged.await.expect("the stream takes it");
}

/// The dead letter of payment-api whose detail or event matches.
async fn dead_letter(matches: impl Fn(&ops::DeadLetter) -> bool) -> ops::DeadLetter {
    let find = || async {
        let request = ops::ListDeadLettersRequest { page_size: 500, include_replayed: true, ..Default::default() };
        let listed = connection().ops("payment-api").unwrap().list_dead_letters(request).await.ok()?.into_inner();
        listed.dead_letters.into_iter().find(|found| matches(found))
    };
    eventually("a dead letter", find).await
}

/// A report that this order's charge succeeded.
fn success(payment: PaymentId, order: PaymentOrderId, charge: ChargeId, units: i64) -> psp::charges_completed::Fact {
    psp::charges_completed::Fact {
        context: Some(FactContext { merchant_id: "dev".into(), version: 99, ..Default::default() }),
        charge_id: charge.to_string(),
        payment_id: payment.to_string(),
        payment_order_id: order.to_string(),
        psp: "simulator".into(),
        psp_account: "simulator-main".into(),
        attempt_count: 1,
        outcome: Some(psp::charges_completed::fact::Outcome::Succeeded(psp::charges_completed::Succeeded {
            amount: Some(Money { currency_code: "EUR".into(), minor_units: units }),
            psp_reference: "forged".into(),
        })),
    }
}

const COMPLETED: &str = "florin.psp.v1.ChargesCompleted";

#[tokio::test]
async fn what_cannot_be_read_is_set_aside_and_the_others_go_on() {
    let garbled = EventId::new().to_string();
    publish(&garbled, COMPLETED, vec![0xff, 0xff, 0xff]).await;
    let found = dead_letter(|found| found.event_id == garbled).await;
    assert_eq!((found.reason.as_str(), found.fact_index), ("UNDECODABLE", -1));

    let nameless = Uuid::now_v7().to_string();
    publish(&nameless, COMPLETED, Vec::new()).await;
    let found = dead_letter(|found| found.reason == "NO_EVENT_ID").await;
    assert!(found.event_id.is_empty());

    let old = EventId::from_uuid(Uuid::from_u128(7)).to_string();
    publish(&old, COMPLETED, Vec::new()).await;
    assert_eq!(dead_letter(|found| found.event_id == old).await.reason, "EVENT_TOO_OLD");

    let request = keyed(&Uuid::now_v7().to_string(), order("order-after-garbage", "tok_ok", 100));
    let created = connection().payments().unwrap().create_payment(request).await.unwrap().into_inner();
    let paid = || async {
        let request = florin::proto::payment::v1::GetPaymentRequest { payment_id: created.payment_id.clone() };
        connection().payments().unwrap().get_payment(request).await.ok()?.into_inner().complete_time
    };
    eventually("the next payment", paid).await;
}

#[tokio::test]
async fn a_fact_about_an_unknown_order_is_parked_alone_and_replayed_at_most_once() {
    let event = EventId::new().to_string();
    let unknown = success(PaymentId::new(), PaymentOrderId::new(), ChargeId::new(), 100);
    let mut nothing = unknown.clone();
    nothing.outcome = None;
    let message = psp::ChargesCompleted { facts: vec![unknown, nothing] };
    publish(&event, COMPLETED, message.encode_to_vec()).await;
    let first = dead_letter(|found| found.event_id == event && found.fact_index == 0).await;
    assert_eq!(first.reason, "UNKNOWN_ORDER");
    let second = dead_letter(|found| found.event_id == event && found.fact_index == 1).await;
    assert_eq!(second.reason, "MALFORMED_FACT", "a missing oneof is never guessed at");

    let mut client = connection().ops("payment-api").unwrap();
    let replay = ops::ReplayDeadLettersRequest { dead_letter_ids: vec![first.dead_letter_id.clone()] };
    let result = client.replay_dead_letters(replay).await.unwrap().into_inner().results.remove(0);
    assert!(!result.replayed && result.error.contains("UNKNOWN_ORDER"), "{result:?}");
    let get = ops::GetDeadLetterRequest { dead_letter_id: first.dead_letter_id };
    let still = client.get_dead_letter(get).await.unwrap().into_inner();
    assert_eq!(still.state(), ops::DeadLetterState::Open, "what still cannot be applied stays");
    assert!(!still.payload.is_empty());
}

#[tokio::test]
async fn money_that_moves_for_a_failed_order_is_recorded_and_the_order_stays_failed() {
    let _alone = crate::shared::ALONE.lock().await;
    let connection = connection();
    let mut request = order("order-unexpected", "tok_declined", 1_234);
    request.wait = Some(prost_types::Duration { seconds: 5, nanos: 0 });
    let request = keyed(&Uuid::now_v7().to_string(), request);
    let failed = connection.payments().unwrap().create_payment(request).await.unwrap().into_inner();
    let order = &failed.payment_orders[0];
    let charge: ChargeId = order.charge_id.parse().unwrap();
    let fact = success(failed.payment_id.parse().unwrap(), order.payment_order_id.parse().unwrap(), charge, 1_234);
    let message = psp::ChargesCompleted { facts: vec![fact] };
    publish(&EventId::new().to_string(), COMPLETED, message.encode_to_vec()).await;
    let database = connection.database("FLORIN_PAYMENT_API").unwrap();
    let recorded = || async {
        let found = sqlx::query_scalar!("select amount from unexpected_charges where charge_id = $1", charge.uuid());
        found.fetch_optional(&database).await.ok()?
    };
    assert_eq!(eventually("the record", recorded).await, 1_234);
    let request = florin::proto::payment::v1::GetPaymentRequest { payment_id: failed.payment_id.clone() };
    let now = connection.payments().unwrap().get_payment(request).await.unwrap().into_inner();
    assert_eq!((now.state(), now.version), (failed.state(), failed.version), "final states are never left");
}

/// The row with the lower number commits last: a relay that only remembers a number would skip it.
#[tokio::test]
async fn a_row_that_commits_late_is_never_skipped() {
    let url = connection().address("FLORIN_PAYMENT_API_DATABASE").unwrap().to_owned();
    let insert = |key: &str| {
        format!(
            "insert into outbox (event_id, message_type, partition, key, traceparent, payload) \
             values ('{}', 'florin.payment.v1.PaymentCompleted', 0, '{key}', '', '')",
            Uuid::now_v7()
        )
    };
    let mut slow = sqlx::PgConnection::connect(&url).await.unwrap();
    let mut fast = sqlx::PgConnection::connect(&url).await.unwrap();
    let (late, early) = (Uuid::now_v7().to_string(), Uuid::now_v7().to_string());
    sqlx::raw_sql("begin").execute(&mut slow).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(insert(&late))).execute(&mut slow).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(insert(&early))).execute(&mut fast).await.unwrap();
    // Long enough for the relay to look many times.
    tokio::time::sleep(Duration::from_millis(300)).await;
    sqlx::raw_sql("commit").execute(&mut slow).await.unwrap();
    let nats = async_nats::connect(connection().address("FLORIN_NATS_URL").unwrap()).await.unwrap();
    let stream = jetstream::new(nats).get_stream("FLORIN_PAYMENT_API").await.unwrap();
    let published = || async {
        let mut seen = Vec::new();
        let info = stream.get_info().await.ok()?;
        let last = info.state.last_sequence;
        for sequence in last.saturating_sub(400).max(1)..=last {
            let Ok(message) = stream.get_raw_message(sequence).await else { continue };
            seen.extend(message.headers.get(header::SUBJECT).map(|key| key.as_str().to_owned()));
        }
        (seen.contains(&late) && seen.contains(&early)).then_some(())
    };
    eventually("both rows", published).await;
}

/// What no header can carry must not stop everything behind it.
#[tokio::test]
async fn a_row_that_cannot_be_published_is_set_aside_and_the_next_goes_on() {
    let url = connection().address("FLORIN_PAYMENT_API_DATABASE").unwrap().to_owned();
    let mut database = sqlx::PgConnection::connect(&url).await.unwrap();
    let event = Uuid::now_v7();
    let row = format!(
        "insert into outbox (event_id, message_type, partition, key, traceparent, payload) \
         values ('{event}', 'florin.payment.v1.PaymentCompleted', 0, E'two\\nlines', '', '')"
    );
    sqlx::raw_sql(AssertSqlSafe(row)).execute(&mut database).await.unwrap();
    let event = EventId::from_uuid(event).to_string();
    let found = dead_letter(|found| found.event_id == event).await;
    assert_eq!((found.consumer.as_str(), found.reason.as_str()), ("relay", "REFUSED_BY_BROKER"));
    let mut next = order("order-after-refusal", "tok_ok", 100);
    next.wait = Some(prost_types::Duration { seconds: 5, nanos: 0 });
    let request = keyed(&Uuid::now_v7().to_string(), next);
    let paid = connection().payments().unwrap().create_payment(request).await.unwrap().into_inner();
    assert!(paid.complete_time.is_some(), "the relay goes on");
}

#[tokio::test]
async fn the_journal_cannot_be_changed_by_anybody() {
    let connection = connection();
    let owner = connection.address("FLORIN_LEDGER_SVC_DATABASE").unwrap().to_owned();
    let worker = owner.replace("florin:florin@", "florin_ledger_svc_app:florin@");
    for statement in [
        "update postings set amount = amount + 1",
        "delete from postings",
        "truncate postings cascade",
        "update journal_entries set kind = 'FEE'",
        "delete from journal_entries",
        "update accounts set entity = 'x'",
    ] {
        let mut database = sqlx::PgConnection::connect(&worker).await.unwrap();
        let refused = sqlx::raw_sql(statement).execute(&mut database).await.unwrap_err();
        let code = refused.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
        assert_eq!(code, "42501", "the service may not: {statement}");
        let mut database = sqlx::PgConnection::connect(&owner).await.unwrap();
        let refused = sqlx::raw_sql(statement).execute(&mut database).await.unwrap_err();
        let code = refused.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
        assert_eq!(code, "23001", "nor may the owner: {statement}");
    }
}

#[tokio::test]
async fn a_producer_learns_what_a_consumer_lacks() {
    let missing = EventId::new().to_string();
    for (service, consumer) in [
        ("FLORIN_PSP_WORKER", "psp-worker-charges"),
        ("FLORIN_LEDGER_SVC", "ledger-svc-captures"),
        ("FLORIN_BALANCE_SVC", "balance-svc-entries"),
    ] {
        let channel = connection().channel(service).unwrap();
        let mut client = ops::reconcile_service_client::ReconcileServiceClient::new(channel);
        let request = ops::FindMissingEventsRequest { consumer: consumer.to_owned(), event_ids: vec![missing.clone()] };
        let answer = client.find_missing_events(request).await.unwrap().into_inner();
        assert_eq!(answer.missing_event_ids, std::slice::from_ref(&missing), "{consumer}");
    }
}
