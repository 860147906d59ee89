//! Between the domain and the contracts.

use florin::envelope::Keyed;
use florin::error::Error;
use florin::id::AttemptId;
use florin::proto::common::v1::FactContext;
use florin::proto::payment::v1 as payment;
use florin::proto::psp::v1 as proto;
use florin::telemetry;
use florin::wire::{money, timestamp};

use crate::attempt::{Action, AttemptState, Charge, ChargeState, Failure};
use crate::psp::Answer;
use crate::simulator;
use crate::store::{AttemptRow, InquiryRow};

impl From<AttemptState> for proto::AttemptState {
    fn from(state: AttemptState) -> Self {
        match state {
            AttemptState::Created => Self::Created,
            AttemptState::Sent => Self::Sent,
            AttemptState::Pending => Self::Pending,
            AttemptState::Succeeded => Self::Succeeded,
            AttemptState::Declined => Self::Declined,
            AttemptState::RejectedRetryable => Self::RejectedRetryable,
            AttemptState::Unknown => Self::Unknown,
            AttemptState::Review => Self::Review,
        }
    }
}

impl From<ChargeState> for proto::ChargeState {
    fn from(state: ChargeState) -> Self {
        match state {
            ChargeState::Open => Self::Open,
            ChargeState::Succeeded => Self::Succeeded,
            ChargeState::Failed => Self::Failed,
            ChargeState::Review => Self::Review,
        }
    }
}

fn next_action(charge: &Charge) -> proto::NextAction {
    match charge.next_action {
        Some(Action::Charge) => proto::NextAction::Charge,
        Some(Action::Inquire) => proto::NextAction::Inquire,
        None => proto::NextAction::Unspecified,
    }
}

/// Name of `InquiryResult` without its prefix.
#[must_use]
pub const fn inquiry_result(answer: &Answer) -> &'static str {
    match answer {
        Answer::Succeeded { .. } => "SUCCEEDED",
        Answer::Declined { .. } => "DECLINED",
        Answer::Rejected { .. } => "REJECTED_RETRYABLE",
        Answer::Pending { .. } => "PENDING",
        Answer::NotFound => "NOT_FOUND",
        Answer::NotTaken { .. } | Answer::Unknown { .. } => "UNKNOWN",
    }
}

fn failure(failure: &Failure) -> payment::Failure {
    florin::wire::failure(&failure.reason, &failure.code, &failure.message)
}

fn keyed<F>(charge: &Charge, fact: impl FnOnce(Option<FactContext>) -> F) -> Keyed<F> {
    let traceparent = telemetry::fact_span("charge", &charge.traceparent, &charge.event_id.to_string());
    let context = FactContext {
        merchant_id: charge.merchant_id.clone(),
        aggregate_id: charge.charge_id.to_string(),
        version: charge.version,
        causation_id: charge.event_id.to_string(),
        traceparent: traceparent.clone(),
        occur_time: Some(timestamp(charge.updated_at)),
        record_time: Some(timestamp(charge.updated_at)),
    };
    Keyed {
        key: charge.payment_id.to_string(),
        causation_id: Some(charge.event_id),
        traceparent,
        fact: fact(Some(context)),
    }
}

/// A charge that ended.
#[must_use]
pub fn completed(charge: &Charge) -> Keyed<proto::charges_completed::Fact> {
    use proto::charges_completed::fact::Outcome;
    let psp_reference = charge.psp_reference.clone();
    let outcome = match &charge.failure {
        Some(why) => Outcome::Failed(proto::charges_completed::Failed { failure: Some(failure(why)), psp_reference }),
        None => Outcome::Succeeded(proto::charges_completed::Succeeded {
            amount: Some(money(charge.amount)),
            psp_reference,
        }),
    };
    keyed(charge, |context| proto::charges_completed::Fact {
        context,
        charge_id: charge.charge_id.to_string(),
        payment_id: charge.payment_id.to_string(),
        payment_order_id: charge.payment_order_id.to_string(),
        psp: simulator::NAME.to_owned(),
        psp_account: charge.psp_account.clone(),
        attempt_count: charge.attempt_count,
        outcome: Some(outcome),
    })
}

/// A charge that goes on.
#[must_use]
pub fn progressed(charge: &Charge) -> Keyed<proto::charges_progressed::Fact> {
    let attempt_state = match (charge.state, charge.uncertain_since, charge.next_action) {
        (ChargeState::Review, ..) => proto::AttemptState::Review,
        (_, Some(_), _) => proto::AttemptState::Unknown,
        (_, None, Some(Action::Inquire)) => proto::AttemptState::Pending,
        (_, None, _) => proto::AttemptState::RejectedRetryable,
    };
    keyed(charge, |context| proto::charges_progressed::Fact {
        context,
        charge_id: charge.charge_id.to_string(),
        payment_id: charge.payment_id.to_string(),
        payment_order_id: charge.payment_order_id.to_string(),
        attempt_count: charge.attempt_count,
        outcome_uncertain_since: charge.uncertain_since.map(timestamp),
        next_action: next_action(charge).into(),
        next_action_time: charge.next_action_at.map(timestamp),
        attempt_state: attempt_state.into(),
    })
}

/// The charge for a caller.
///
/// # Errors
/// The database holds a state that this version does not know.
pub fn charge(charge: &Charge, attempts: &[AttemptRow], inquiries: &[InquiryRow]) -> Result<proto::Charge, Error> {
    let attempts = attempts.iter().map(attempt).collect::<Result<Vec<_>, Error>>()?;
    let inquiries = inquiries.iter().map(inquiry).collect::<Result<Vec<_>, Error>>()?;
    Ok(proto::Charge {
        charge_id: charge.charge_id.to_string(),
        payment_id: charge.payment_id.to_string(),
        payment_order_id: charge.payment_order_id.to_string(),
        seller_id: charge.seller_id.clone(),
        amount: Some(money(charge.amount)),
        psp: simulator::NAME.to_owned(),
        psp_account: charge.psp_account.clone(),
        psp_reference: charge.psp_reference.clone(),
        state: proto::ChargeState::from(charge.state).into(),
        failure: charge.failure.as_ref().map(failure),
        generation: charge.generation,
        outcome_uncertain_since: charge.uncertain_since.map(timestamp),
        next_action: next_action(charge).into(),
        next_action_time: charge.next_action_at.map(timestamp),
        attempts,
        inquiries,
        create_time: Some(timestamp(charge.created_at)),
        update_time: Some(timestamp(charge.updated_at)),
        version: charge.version,
    })
}

fn attempt(row: &AttemptRow) -> Result<proto::Attempt, Error> {
    let state: AttemptState = row.state.parse().map_err(Error::internal)?;
    Ok(proto::Attempt {
        attempt_id: AttemptId::from_uuid(row.attempt_id).to_string(),
        attempt_number: row.attempt_number,
        generation: row.generation,
        state: proto::AttemptState::from(state).into(),
        code: row.code.clone(),
        message: row.message.clone(),
        send_time: Some(timestamp(row.sent_at)),
        finish_time: row.finished_at.map(timestamp),
    })
}

fn inquiry(row: &InquiryRow) -> Result<proto::Inquiry, Error> {
    let result = proto::InquiryResult::from_str_name(&format!("INQUIRY_RESULT_{}", row.result));
    let result = result.ok_or_else(|| Error::internal(format!("inquiry result {} is unknown", row.result)))?;
    Ok(proto::Inquiry {
        inquiry_number: row.inquiry_number,
        result: result.into(),
        code: row.code.clone(),
        send_time: Some(timestamp(row.sent_at)),
    })
}
