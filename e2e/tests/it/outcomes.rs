//! Every behaviour of the PSP, by test token, to its end: right state, right reason, one charge at most.

use cli::connection::Connection;
use e2e::{eventually, keyed, order};
use florin::proto::payment::v1 as payment;
use florin::proto::payment::v1::{FailureReason, PaymentOrder, PaymentOrderState};
use florin::proto::psp::v1 as psp;
use florin::proto::psp::v1::{AttemptState, InquiryResult};
use uuid::Uuid;

use crate::shared::connection;

/// Pays with a token and waits for the end.
async fn pay(connection: &Connection, token: &str) -> (PaymentOrder, psp::Charge) {
    let mut client = connection.payments().unwrap();
    let request = keyed(&Uuid::now_v7().to_string(), order(&format!("order-{token}"), token, 1_000));
    let payment_id = client.create_payment(request).await.unwrap().into_inner().payment_id;
    let ended = || async {
        let request = payment::GetPaymentRequest { payment_id: payment_id.clone() };
        let payment = connection.payments().unwrap().get_payment(request).await.ok()?.into_inner();
        payment.complete_time.map(|_| payment.payment_orders[0].clone())
    };
    let order = eventually(token, ended).await;
    (order.clone(), charge(connection, &order.payment_order_id).await)
}

async fn charge(connection: &Connection, payment_order_id: &str) -> psp::Charge {
    let request = psp::GetChargeRequest { payment_order_id: payment_order_id.to_owned() };
    connection.charges().unwrap().get_charge(request).await.unwrap().into_inner()
}

fn found(charge: &psp::Charge, result: InquiryResult) -> bool {
    charge.inquiries.iter().any(|inquiry| inquiry.result() == result)
}

async fn succeeds(token: &str) -> psp::Charge {
    let (order, charge) = pay(&connection(), token).await;
    assert_eq!(order.state(), PaymentOrderState::Succeeded, "{token}: {order:?}");
    assert_eq!(order.captured.as_ref().unwrap().minor_units, 1_000);
    assert_eq!(order.outcome_uncertain_since, None);
    charge
}

async fn fails(token: &str) -> (FailureReason, psp::Charge) {
    let (order, charge) = pay(&connection(), token).await;
    assert_eq!(order.state(), PaymentOrderState::Failed, "{token}: {order:?}");
    assert_eq!(order.captured.as_ref().unwrap().minor_units, 0);
    (order.failure.unwrap().reason(), charge)
}

#[tokio::test]
async fn declines_are_final_with_their_reason() {
    for (token, reason) in [
        ("tok_declined", FailureReason::Declined),
        ("tok_insufficient_funds", FailureReason::InsufficientFunds),
        ("tok_invalid", FailureReason::InvalidToken),
    ] {
        let (failed, charge) = fails(token).await;
        assert_eq!((failed, charge.attempts.len()), (reason, 1), "{token}: never retried by itself");
    }
}

#[tokio::test]
async fn a_stored_error_is_retried_with_a_new_key() {
    let charge = succeeds("tok_transient_then_ok").await;
    let attempts: Vec<_> = charge.attempts.iter().map(|attempt| (attempt.generation, attempt.state())).collect();
    assert_eq!(attempts, [(1, AttemptState::RejectedRetryable), (2, AttemptState::Succeeded)]);
}

#[tokio::test]
async fn five_retries_then_failed() {
    let (reason, charge) = fails("tok_transient").await;
    assert_eq!((reason, charge.attempts.len()), (FailureReason::ProcessingError, 6));
}

#[tokio::test]
async fn a_charge_that_acted_and_hung_is_found_and_never_repeated() {
    for token in ["tok_acts_then_hangs", "tok_acts_then_resets", "tok_garbage", "tok_acts_late"] {
        let charge = succeeds(token).await;
        assert_eq!(charge.attempts.len(), 1, "{token}: looked up, not charged again");
        assert!(found(&charge, InquiryResult::Succeeded), "{token}");
    }
}

#[tokio::test]
async fn a_charge_that_was_never_made_is_made_under_the_same_key() {
    let charge = succeeds("tok_timeout_then_ok").await;
    let generations: Vec<_> = charge.attempts.iter().map(|attempt| attempt.generation).collect();
    assert_eq!(generations, [1, 1], "not found, so the same key again");
    assert!(found(&charge, InquiryResult::NotFound));
}

#[tokio::test]
async fn a_server_error_is_unknown_and_is_looked_up() {
    let charge = succeeds("tok_psp_down_then_ok").await;
    assert_eq!(charge.attempts[0].state(), AttemptState::Unknown);
    assert_eq!(charge.generation, 1);
}

#[tokio::test]
async fn throttling_waits_as_long_as_it_is_told() {
    let charge = succeeds("tok_throttled_then_ok").await;
    let sent: Vec<_> = charge.attempts.iter().map(|attempt| attempt.send_time.unwrap().seconds).collect();
    assert!(sent[1] - sent[0] >= 1, "Retry-After: 1");
    assert_eq!(charge.generation, 1, "the key stays");
}

#[tokio::test]
async fn a_pending_charge_is_followed_to_its_decision() {
    assert_eq!(succeeds("tok_pending_2s").await.attempts.len(), 1);
    let (reason, charge) = fails("tok_pending_then_declined").await;
    assert_eq!((reason, charge.attempts.len()), (FailureReason::Declined, 1));
}

#[tokio::test]
async fn another_amount_is_reviewed_and_not_posted() {
    let _alone = crate::shared::ALONE.lock().await;
    let platform =
        tokio::task::spawn_blocking(|| e2e::Platform::start(xtask::services::Options::default())).await.unwrap();
    let connection = platform.connection();
    let request = keyed("wrong-amount", order("order-wrong", "tok_wrong_amount", 1_000));
    let created = connection.payments().unwrap().create_payment(request).await.unwrap().into_inner();
    let order = &created.payment_orders[0].payment_order_id;
    let reviewed = || async {
        let request = psp::GetChargeRequest { payment_order_id: order.clone() };
        let charge = connection.charges().unwrap().get_charge(request).await.ok()?.into_inner();
        (charge.state() == psp::ChargeState::Review).then_some(())
    };
    eventually("a review", reviewed).await;
    let report = cli::audit::audit(&connection, &[], std::time::Duration::ZERO).await.unwrap();
    let violated: Vec<_> = report.findings.iter().filter(|finding| !finding.violations.is_empty()).collect();
    let names: Vec<_> = violated.iter().map(|finding| finding.invariant).collect();
    assert_eq!(names, ["I5", "I12"], "the auditor sees that money moved and nothing was posted");
    tokio::task::spawn_blocking(move || drop(platform)).await.unwrap();
}
