//! The API as callers meet it: idempotency, refusals, pages, watching, reflection.

use std::collections::HashSet;
use std::time::Duration;

use e2e::{eventually, keyed, order};
use florin::error::{Reason, from_status};
use florin::proto::payment::v1 as payment;
use florin::proto::payment::v1::PaymentState;
use florin::proto::{balance::v1 as balance, ledger::v1 as ledger, psp::v1 as psp};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::shared::connection;

fn unique(name: &str) -> String {
    format!("{name}-{}", Uuid::now_v7())
}

fn reason(status: &Status) -> Reason {
    from_status(status).map_or(Reason::Unspecified, |error| error.reason)
}

fn field(status: &Status) -> String {
    let error = from_status(status).expect("details");
    error.violations.first().map(|violation| violation.field.clone()).unwrap_or_default()
}

fn waiting(mut request: payment::CreatePaymentRequest) -> payment::CreatePaymentRequest {
    request.wait = Some(prost_types::Duration { seconds: 5, nanos: 0 });
    request
}

#[tokio::test]
async fn a_key_stands_for_one_payment_however_often_it_is_used() {
    let key = unique("key");
    let calls = (0..32).map(|_| {
        let key = key.clone();
        tokio::spawn(async move {
            connection().payments().unwrap().create_payment(keyed(&key, order("order-idem", "tok_ok", 100))).await
        })
    });
    let mut ids = HashSet::new();
    let mut first = 0;
    for call in calls.collect::<Vec<_>>() {
        let answer = call.await.unwrap().expect("every caller is answered");
        first += usize::from(!answer.metadata().contains_key("idempotent-replayed"));
        ids.insert(answer.into_inner().payment_id);
    }
    assert_eq!((ids.len(), first), (1, 1), "one payment, one first call, 31 replays");

    let other = order("order-idem", "tok_ok", 101);
    let status = connection().payments().unwrap().create_payment(keyed(&key, other)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::InvalidArgument, Reason::IdempotencyKeyReused));

    let mut patient = order("order-idem", "tok_ok", 100);
    patient.wait = Some(prost_types::Duration { seconds: 2, nanos: 0 });
    let replay = connection().payments().unwrap().create_payment(keyed(&key, patient)).await.unwrap().into_inner();
    assert!(ids.contains(&replay.payment_id), "another patience is the same content");
    assert_eq!(replay.state(), PaymentState::Succeeded, "a replay answers the payment as it is now");
}

#[tokio::test]
async fn validate_only_answers_fees_and_writes_nothing() {
    let key = unique("key");
    let mut dry = order(&unique("order"), "tok_ok", 10_000);
    dry.validate_only = true;
    let mut client = connection().payments().unwrap();
    let answer = client.create_payment(keyed(&key, dry.clone())).await.unwrap().into_inner();
    assert_eq!(answer.payment_orders[0].fee.as_ref().unwrap().amount.as_ref().unwrap().minor_units, 260);
    let status = client.get_payment(payment::GetPaymentRequest { payment_id: answer.payment_id }).await.unwrap_err();
    assert_eq!(reason(&status), Reason::PaymentNotFound);
    dry.validate_only = false;
    let created = client.create_payment(keyed(&key, dry)).await.unwrap();
    assert!(!created.metadata().contains_key("idempotent-replayed"), "the key was not used");
}

#[tokio::test]
async fn refusals_name_reason_and_field() {
    let mut client = connection().payments().unwrap();
    let status = client.create_payment(tonic::Request::new(order("o", "tok_ok", 1))).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::InvalidArgument, Reason::IdempotencyKeyMissing));

    let mut wrong = order("o", "4242424242424242", 0);
    wrong.buyer_id = "x".repeat(65);
    let status = client.create_payment(keyed("k", wrong)).await.unwrap_err();
    let reasons: HashSet<Reason> = from_status(&status).unwrap().violations.iter().map(|v| v.reason).collect();
    assert_eq!(reasons, HashSet::from([Reason::AmountNotPositive, Reason::IdTooLong, Reason::CardNumber]));
    assert!(!format!("{status:?}").contains("4242424242424242"), "a card number is never repeated");

    let get = |payment_id: &str| payment::GetPaymentRequest { payment_id: payment_id.to_owned() };
    for (id, expected) in [
        ("", Reason::FieldRequired),
        ("po_01h455vb4pex5vsknk084sn02q", Reason::IdPrefix),
        ("pay_x", Reason::IdMalformed),
        ("pay_01h455vb4pex5vsknk084sn02q", Reason::PaymentNotFound),
    ] {
        let status = client.get_payment(get(id)).await.unwrap_err();
        assert_eq!(reason(&status), expected, "{id}");
        assert!(expected == Reason::PaymentNotFound || field(&status) == "payment_id");
    }
}

#[tokio::test]
async fn every_service_refuses_in_the_same_words() {
    let connection = connection();
    let unknown = "po_01h455vb4pex5vsknk084sn02q".to_owned();
    let status = connection.charges().unwrap().get_charge(psp::GetChargeRequest { payment_order_id: unknown }).await;
    assert_eq!(reason(&status.unwrap_err()), Reason::ChargeNotFound);
    let entry = ledger::GetJournalEntryRequest { journal_entry_id: "je_01h455vb4pex5vsknk084sn02q".to_owned() };
    let status = connection.ledger().unwrap().get_journal_entry(entry).await.unwrap_err();
    assert_eq!(reason(&status), Reason::JournalEntryNotFound);
    let statement = ledger::GetAccountStatementRequest { account_code: "CASH.x.EUR".to_owned(), ..Default::default() };
    let status = connection.ledger().unwrap().get_account_statement(statement).await.unwrap_err();
    assert_eq!((reason(&status), field(&status)), (Reason::AccountCodeMalformed, "account_code".to_owned()));
    let nothing =
        balance::GetBalanceRequest { account_code: "SELLER_PENDING.nobody.EUR".to_owned(), ..Default::default() };
    let found = connection.balances().unwrap().get_balance(nothing.clone()).await.unwrap().into_inner();
    assert_eq!((found.version, found.balance.unwrap().minor_units), (0, 0));
    let too_new = balance::GetBalanceRequest { min_version: 1, ..nothing };
    let status = connection.balances().unwrap().get_balance(too_new).await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::FailedPrecondition, Reason::VersionNotReached));
}

#[tokio::test]
async fn pages_hold_each_payment_once_and_tokens_their_query() {
    let mut client = connection().payments().unwrap();
    let order_id = unique("order");
    let mut created = Vec::new();
    for _ in 0..5 {
        let answer = client.create_payment(keyed(&unique("key"), order(&order_id, "tok_ok", 100))).await.unwrap();
        created.push(answer.into_inner().payment_id);
    }
    created.reverse();
    let list = |page_token: &str, order_id: &str| payment::ListPaymentsRequest {
        page_size: 2,
        page_token: page_token.to_owned(),
        order_id: order_id.to_owned(),
        ..Default::default()
    };
    let mut found = Vec::new();
    let mut token = String::new();
    loop {
        let page = client.list_payments(list(&token, &order_id)).await.unwrap().into_inner();
        found.extend(page.payments.into_iter().map(|payment| payment.payment_id));
        if page.next_page_token.is_empty() {
            break;
        }
        token = page.next_page_token;
    }
    assert_eq!(found, created, "newest first, each once");
    let status = client.list_payments(list(&token, "another-order")).await.unwrap_err();
    assert_eq!((reason(&status), field(&status)), (Reason::PageTokenOfOtherQuery, "page_token".to_owned()));
    let status = client.list_payments(list("nonsense", &order_id)).await.unwrap_err();
    assert_eq!(reason(&status), Reason::PageTokenMalformed);
}

#[tokio::test]
async fn a_watch_sees_versions_go_up_until_the_end() {
    let mut client = connection().payments().unwrap();
    let created =
        client.create_payment(keyed(&unique("key"), order(&unique("order"), "tok_transient_then_ok", 100))).await;
    let payment_id = created.unwrap().into_inner().payment_id;
    let mut changes = client.watch_payment(payment::WatchPaymentRequest { payment_id }).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while let Some(payment) = changes.message().await.unwrap() {
        seen.push((payment.version, payment.state()));
    }
    assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0), "{seen:?}");
    assert_eq!(seen.last().unwrap().1, PaymentState::Succeeded);
}

#[tokio::test]
async fn what_was_written_can_be_read_at_once() {
    let connection = connection();
    let seller = unique("seller");
    let mut request = waiting(order(&unique("order"), "tok_ok", 1_000));
    request.lines[0].seller_id.clone_from(&seller);
    let created =
        connection.payments().unwrap().create_payment(keyed(&unique("key"), request)).await.unwrap().into_inner();
    let entries = || async {
        let request =
            ledger::ListJournalEntriesRequest { payment_id: created.payment_id.clone(), ..Default::default() };
        let entries =
            connection.ledger().unwrap().list_journal_entries(request).await.ok()?.into_inner().journal_entries;
        (entries.len() == 2).then_some(entries)
    };
    let entries = eventually("capture and fee", entries).await;
    for entry in &entries {
        let request = balance::GetBalanceRequest {
            account_code: format!("SELLER_PENDING.{seller}.EUR"),
            after_journal_entry_id: entry.journal_entry_id.clone(),
            ..Default::default()
        };
        let found = connection.balances().unwrap().get_balance(request).await.unwrap().into_inner();
        assert!(found.version >= 1);
    }
    let request = balance::ListSellerBalancesRequest { seller_id: seller.clone(), ..Default::default() };
    let found = connection.balances().unwrap().list_seller_balances(request).await.unwrap().into_inner();
    // 1,000 less 2.5 % and 0.10.
    assert_eq!(found.balances[0].pending.as_ref().unwrap().minor_units, 965);
    let request = ledger::GetAccountStatementRequest {
        account_code: format!("SELLER_PENDING.{seller}.EUR"),
        ..Default::default()
    };
    let statement = connection.ledger().unwrap().get_account_statement(request).await.unwrap().into_inner();
    let running: Vec<i64> =
        statement.lines.iter().map(|line| line.running_balance.as_ref().unwrap().minor_units).collect();
    assert_eq!(running.first(), Some(&965), "newest first, with the balance after it");
}

/// What grpcurl does: finds the service by reflection and calls it without any generated code.
#[tokio::test]
async fn reflection_describes_every_service() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    for variable in ["FLORIN_PAYMENT_API", "FLORIN_PSP_WORKER", "FLORIN_LEDGER_SVC", "FLORIN_BALANCE_SVC"] {
        let mut client = ServerReflectionClient::new(connection().channel(variable).unwrap());
        let ask = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let outgoing = tokio_stream::once(ask);
        let mut answers = client.server_reflection_info(outgoing).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap().message_response;
        let Some(MessageResponse::ListServicesResponse(listed)) = answer else { panic!("{answer:?}") };
        let names: Vec<String> = listed.service.into_iter().map(|service| service.name).collect();
        assert!(names.iter().any(|name| name == "florin.ops.v1.OpsService"), "{names:?}");
    }
}

#[tokio::test]
async fn a_caller_who_goes_away_leaves_nothing_open() {
    let connection = connection();
    let calls = (0..200_u64).map(|n| {
        let connection = connection.clone();
        tokio::spawn(async move {
            let mut request = keyed(&unique("key"), order("order-cancel", "tok_ok", 100));
            request.set_timeout(Duration::from_micros(50 * n));
            let _ = connection.payments().unwrap().create_payment(request).await;
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    let database = connection.database("FLORIN_PAYMENT_API").unwrap();
    let none_open = || async {
        let open = sqlx::query_scalar!(
            r#"select count(*) as "count!" from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'"#
        );
        (open.fetch_one(&database).await.ok()? == 0).then_some(())
    };
    eventually("no open transaction", none_open).await;
    let answer = connection.payments().unwrap().create_payment(keyed(&unique("key"), order("o", "tok_ok", 1))).await;
    assert!(answer.is_ok(), "and the next caller is served");
}
