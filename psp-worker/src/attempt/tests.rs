use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::psp::NotTaken;

const DECLARATION: Declaration = Declaration {
    key_retention: Duration::from_secs(3600),
    max_processing: Duration::from_secs(10),
    reads_own_writes: true,
};

fn rules() -> Rules {
    Rules {
        max_retries: 5,
        backoff: Backoff { base: Duration::from_secs(2), cap: Duration::from_secs(60) },
        inquiries: InquirySchedule {
            first: [1, 5, 30].map(Duration::from_secs).to_vec(),
            cap: Duration::from_secs(1800),
        },
        declaration: DECLARATION,
        longest_send: Duration::ZERO,
    }
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_000_000 + seconds, 0).unwrap()
}

/// A charge whose first call was sent at second 0.
fn charge() -> Charge {
    Charge {
        charge_id: ChargeId::from_uuid(Uuid::nil()),
        payment_order_id: PaymentOrderId::from_uuid(Uuid::nil()),
        payment_id: PaymentId::from_uuid(Uuid::nil()),
        merchant_id: "dev".into(),
        order_id: "o".into(),
        seller_id: "s".into(),
        amount: Money::new("EUR".parse().unwrap(), 100),
        payment_token: "tok_ok".into(),
        psp_account: "main".into(),
        state: ChargeState::Open,
        next_action: Some(Action::Inquire),
        next_action_at: Some(at(8)),
        lease_epoch: 1,
        generation: 1,
        key_since: Some(at(0)),
        attempt_count: 1,
        retry_count: 0,
        hold_count: 0,
        inquiry_count: 0,
        inquiry_round: 0,
        last_sent_at: Some(at(0)),
        uncertain_since: None,
        psp_reference: String::new(),
        failure: None,
        event_id: EventId::from_uuid(Uuid::nil()),
        traceparent: String::new(),
        created_at: at(0),
        updated_at: at(0),
        version: 1,
        read_at: at(0),
    }
}

fn succeeded(units: i64) -> Answer {
    Answer::Succeeded { amount: Money::new("EUR".parse().unwrap(), units), psp_reference: "psp-1".into() }
}

fn declined() -> Answer {
    Answer::Declined { reason: "DECLINED", code: "05".into(), message: "no".into(), psp_reference: "psp-1".into() }
}

fn rejected() -> Answer {
    Answer::Rejected { code: "processing_error".into(), message: "later".into() }
}

fn unknown() -> Answer {
    Answer::Unknown { code: "TIMEOUT", message: "no answer".into() }
}

fn not_taken(why: NotTaken) -> Answer {
    Answer::NotTaken { why, retry_after: Some(Duration::from_secs(7)), message: String::new() }
}

fn pending() -> Answer {
    Answer::Pending { psp_reference: "psp-1".into() }
}

fn apply(charge: &mut Charge, action: Action, answer: &Answer, second: i64) -> Verdict {
    charge.apply(action, answer, &rules(), at(second), &mut rand::rng())
}

#[test]
fn a_timeout_is_not_a_failure_and_not_a_retry() {
    let mut charge = charge();
    let verdict = apply(&mut charge, Action::Charge, &unknown(), 3);
    assert_eq!((charge.state, charge.next_action, charge.generation), (ChargeState::Open, Some(Action::Inquire), 1));
    assert_eq!(verdict.attempt, AttemptState::Unknown);
    assert_eq!(verdict.delay, Some(Duration::from_secs(1)));
    assert_eq!(charge.uncertain_since, Some(at(0)), "uncertain since the call left");
}

#[test]
fn not_found_counts_only_after_the_processing_time_and_keeps_the_key() {
    let mut charge = charge();
    apply(&mut charge, Action::Charge, &unknown(), 3);
    let verdict = apply(&mut charge, Action::Inquire, &Answer::NotFound, 4);
    assert_eq!((charge.next_action, verdict.delay), (Some(Action::Inquire), Some(Duration::from_secs(5))));
    let verdict = apply(&mut charge, Action::Inquire, &Answer::NotFound, 9);
    assert_eq!(verdict.delay, Some(Duration::from_secs(1)), "right after the processing time");
    assert!(charge.uncertain_since.is_some());
    apply(&mut charge, Action::Inquire, &Answer::NotFound, 10);
    assert_eq!((charge.next_action, charge.generation, charge.retry_count), (Some(Action::Charge), 1, 1));
    assert_eq!(charge.key_since, Some(at(0)), "the key keeps its age");
    assert_eq!(charge.uncertain_since, None);
}

#[test]
fn the_processing_time_begins_when_the_request_can_no_longer_be_on_its_way() {
    let mut rules = rules();
    rules.longest_send = Duration::from_secs(4);
    let mut charge = charge();
    charge.apply(Action::Charge, &unknown(), &rules, at(3), &mut rand::rng());
    charge.apply(Action::Inquire, &Answer::NotFound, &rules, at(13), &mut rand::rng());
    assert_eq!(charge.next_action, Some(Action::Inquire));
    charge.apply(Action::Inquire, &Answer::NotFound, &rules, at(14), &mut rand::rng());
    assert_eq!(charge.next_action, Some(Action::Charge));
}

#[test]
fn not_found_of_a_psp_with_lagging_reads_never_counts() {
    let mut rules = rules();
    rules.declaration.reads_own_writes = false;
    let mut charge = charge();
    for second in [3, 100, 100_000] {
        charge.apply(Action::Inquire, &Answer::NotFound, &rules, at(second), &mut rand::rng());
        assert_eq!(charge.next_action, Some(Action::Inquire));
    }
    assert!(charge.uncertain_since.is_some());
}

#[test]
fn an_old_key_is_never_used_again_and_never_replaced() {
    let mut charge = charge();
    apply(&mut charge, Action::Charge, &unknown(), 3);
    apply(&mut charge, Action::Inquire, &Answer::NotFound, 1800);
    assert_eq!((charge.state, charge.generation), (ChargeState::Failed, 1));
    assert_eq!(charge.failure.unwrap().reason, "PSP_UNAVAILABLE");
}

#[test]
fn only_a_stored_error_opens_the_next_generation() {
    for answer in [
        unknown(),
        pending(),
        not_taken(NotTaken::Throttled),
        not_taken(NotTaken::Refused),
        not_taken(NotTaken::Forbidden),
    ] {
        let mut charge = charge();
        apply(&mut charge, Action::Charge, &answer, 1);
        assert_eq!(charge.generation, 1, "{answer:?}");
    }
    let mut charge = charge();
    let before = charge.idempotency_key();
    apply(&mut charge, Action::Charge, &rejected(), 1);
    assert_eq!((charge.generation, charge.next_action), (2, Some(Action::Charge)));
    assert_ne!(charge.idempotency_key(), before);
}

#[test]
fn what_the_psp_did_not_take_is_tried_again_without_counting() {
    let mut charge = charge();
    for second in 0..100 {
        let verdict = apply(&mut charge, Action::Charge, &not_taken(NotTaken::Refused), second);
        assert!(verdict.delay.unwrap() >= Duration::from_secs(7), "Retry-After is honoured");
    }
    assert_eq!((charge.state, charge.retry_count), (ChargeState::Open, 0), "never fails by the clock");
}

#[test]
fn a_decline_is_final_at_once() {
    let mut charge = charge();
    apply(&mut charge, Action::Charge, &declined(), 1);
    assert_eq!((charge.state, charge.next_action), (ChargeState::Failed, None));
}

#[test]
fn five_retries_then_failed_with_the_reason() {
    let mut charge = charge();
    for retry in 1..=5 {
        apply(&mut charge, Action::Charge, &rejected(), retry);
        assert_eq!((charge.state, charge.retry_count), (ChargeState::Open, i32::try_from(retry).unwrap()));
    }
    apply(&mut charge, Action::Charge, &rejected(), 6);
    let failure = charge.failure.unwrap();
    assert_eq!(
        (charge.state, failure.reason.as_str(), failure.code.as_str()),
        (ChargeState::Failed, "PROCESSING_ERROR", "processing_error")
    );
}

#[test]
fn another_amount_goes_to_review() {
    let mut charge = charge();
    let verdict = apply(&mut charge, Action::Charge, &succeeded(99), 1);
    assert_eq!((charge.state, verdict.attempt), (ChargeState::Review, AttemptState::Review));
}

#[test]
fn a_failed_look_up_of_a_pending_charge_makes_nothing_uncertain() {
    let mut charge = charge();
    apply(&mut charge, Action::Charge, &pending(), 1);
    let verdict = apply(&mut charge, Action::Inquire, &unknown(), 2);
    assert_eq!((charge.uncertain_since, verdict.attempt), (None, AttemptState::Pending));
}

fn any_answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        Just(succeeded(100)),
        Just(succeeded(1)),
        Just(declined()),
        Just(rejected()),
        Just(unknown()),
        Just(pending()),
        Just(not_taken(NotTaken::Refused)),
        Just(Answer::NotFound),
    ]
}

proptest! {
    /// Whatever the PSP answers to what was planned: final states need evidence, an open charge always has a next
    /// action, the key changes only by a stored error, and nobody is charged while nobody knows.
    #[test]
    fn no_answer_breaks_a_charge(answers in proptest::collection::vec((any_answer(), 0_i64..5000), 1..40)) {
        let mut charge = charge();
        let mut action = Action::Charge;
        let mut second = 0;
        for (answer, seconds) in answers {
            second += seconds;
            let before = charge.clone();
            let verdict = apply(&mut charge, action, &answer, second);
            prop_assert_eq!(charge.version, before.version + 1);
            prop_assert_eq!(charge.state == ChargeState::Open, charge.next_action.is_some());
            prop_assert_eq!(charge.state == ChargeState::Open, verdict.delay.is_some());
            prop_assert_eq!(charge.state == ChargeState::Failed, charge.failure.is_some());
            if charge.generation != before.generation {
                prop_assert_eq!(&answer, &rejected());
            }
            if charge.next_action == Some(Action::Charge) {
                prop_assert!(charge.uncertain_since.is_none(), "no call to charge while nobody knows");
            }
            match charge.next_action {
                Some(next) => action = next,
                None => break,
            }
        }
    }
}
