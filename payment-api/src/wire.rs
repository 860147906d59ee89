//! Between the domain and the contracts.

use chrono::{DateTime, Utc};
use florin::envelope::Keyed;
use florin::error::{Reason, Violation};
use florin::id::EventId;
use florin::money::Money;
use florin::proto::common::v1::FactContext;
use florin::proto::payment::v1 as proto;
use florin::proto::psp::v1 as psp;
use florin::wire::{money, time, timestamp, trusted_money, violation};

use crate::payment::{Failure, News, Order, OrderState, Payment, PaymentState, Report};

impl From<PaymentState> for proto::PaymentState {
    fn from(state: PaymentState) -> Self {
        match state {
            PaymentState::Pending => Self::Pending,
            PaymentState::Processing => Self::Processing,
            PaymentState::Succeeded => Self::Succeeded,
            PaymentState::PartiallySucceeded => Self::PartiallySucceeded,
            PaymentState::Failed => Self::Failed,
            PaymentState::Canceled => Self::Canceled,
        }
    }
}

impl From<OrderState> for proto::PaymentOrderState {
    fn from(state: OrderState) -> Self {
        match state {
            OrderState::Pending => Self::Pending,
            OrderState::Processing => Self::Processing,
            OrderState::RequiresAction => Self::RequiresAction,
            OrderState::Authorized => Self::Authorized,
            OrderState::Succeeded => Self::Succeeded,
            OrderState::Failed => Self::Failed,
            OrderState::Canceled => Self::Canceled,
        }
    }
}

/// States of a filter, as the database holds them.
///
/// # Errors
/// One is unspecified or unknown.
pub fn payment_states(values: &[i32]) -> Result<Vec<String>, Violation> {
    states(values, "PAYMENT_STATE_", |value| {
        proto::PaymentState::try_from(value)
            .ok()
            .filter(|state| *state != proto::PaymentState::Unspecified)
            .map(|state| state.as_str_name())
    })
}

/// States of a filter, as the database holds them.
///
/// # Errors
/// One is unspecified or unknown.
pub fn order_states(values: &[i32]) -> Result<Vec<String>, Violation> {
    states(values, "PAYMENT_ORDER_STATE_", |value| {
        proto::PaymentOrderState::try_from(value)
            .ok()
            .filter(|state| *state != proto::PaymentOrderState::Unspecified)
            .map(|state| state.as_str_name())
    })
}

fn states(values: &[i32], prefix: &str, name: impl Fn(i32) -> Option<&'static str>) -> Result<Vec<String>, Violation> {
    let known = |(index, value): (usize, &i32)| {
        let refused = || violation(format!("states[{index}]"), Reason::EnumInvalid, "must be a known state");
        name(*value).and_then(|name| name.strip_prefix(prefix)).map(ToOwned::to_owned).ok_or_else(refused)
    };
    values.iter().enumerate().map(known).collect()
}

/// The payment for a caller.
#[must_use]
pub fn payment(payment: &Payment) -> proto::Payment {
    proto::Payment {
        payment_id: payment.payment_id.to_string(),
        order_id: payment.order_id.clone(),
        buyer_id: payment.buyer_id.clone(),
        state: proto::PaymentState::from(payment.state).into(),
        total: Some(money(payment.total)),
        payment_orders: payment.orders.iter().map(order).collect(),
        description: payment.description.clone(),
        metadata: payment.metadata.clone().into_iter().collect(),
        create_time: Some(timestamp(payment.created_at)),
        update_time: Some(timestamp(payment.updated_at)),
        complete_time: payment.completed_at.map(timestamp),
        version: payment.version,
    }
}

/// The payment order for a caller.
#[must_use]
pub fn order(order: &Order) -> proto::PaymentOrder {
    let of = |units| Some(money(Money::new(order.amount.currency, units)));
    proto::PaymentOrder {
        payment_order_id: order.payment_order_id.to_string(),
        payment_id: order.payment_id.to_string(),
        order_id: order.order_id.clone(),
        seller_id: order.seller_id.clone(),
        seller_reference: order.seller_reference.clone(),
        state: proto::PaymentOrderState::from(order.state).into(),
        amount: Some(money(order.amount)),
        fee: Some(fee(order)),
        failure: order.failure.as_ref().map(failure),
        attempt_count: order.attempt_count,
        outcome_uncertain_since: order.uncertain_since.map(timestamp),
        next_action_time: order.next_psp_action_at.map(timestamp),
        psp: order.psp.clone(),
        psp_account: order.psp_account.clone(),
        psp_reference: order.psp_reference.clone(),
        charge_id: order.charge_id.to_string(),
        authorized: of(order.captured),
        captured: of(order.captured),
        refunded: of(0),
        disputed: of(0),
        create_time: Some(timestamp(order.created_at)),
        update_time: Some(timestamp(order.updated_at)),
        version: order.version,
    }
}

fn fee(order: &Order) -> proto::Fee {
    proto::Fee {
        amount: Some(money(Money::new(order.amount.currency, order.fee.minor_units))),
        schedule_id: order.fee.schedule_id.clone(),
        schedule_version: order.fee.schedule_version,
    }
}

fn failure(failure: &Failure) -> proto::Failure {
    florin::wire::failure(&failure.reason, &failure.psp_code, &failure.message)
}

/// A failure from psp-worker.
#[must_use]
pub fn failure_from(wire: &proto::Failure) -> Failure {
    let name = wire.reason().as_str_name();
    Failure {
        reason: name.strip_prefix("FAILURE_REASON_").unwrap_or(name).to_owned(),
        psp_code: wire.psp_code.clone(),
        message: wire.message.clone(),
    }
}

/// What caused facts, and when they were recorded.
#[derive(Debug, Clone, Copy)]
pub struct Cause<'a> {
    /// The event; `None` where a call was the cause.
    pub event_id: Option<EventId>,
    /// Trace context.
    pub traceparent: &'a str,
    /// When.
    pub at: DateTime<Utc>,
}

impl Cause<'_> {
    fn context(&self, merchant: &str, aggregate: String, version: i64) -> Option<FactContext> {
        Some(FactContext {
            merchant_id: merchant.to_owned(),
            aggregate_id: aggregate,
            version,
            causation_id: self.event_id.map(|id| id.to_string()).unwrap_or_default(),
            traceparent: self.traceparent.to_owned(),
            occur_time: Some(timestamp(self.at)),
            record_time: Some(timestamp(self.at)),
        })
    }

    /// Everything about a payment is keyed by the payment.
    fn keyed<F>(&self, payment: &str, fact: F) -> Keyed<F> {
        let traceparent = self.traceparent.to_owned();
        Keyed { key: payment.to_owned(), causation_id: self.event_id, traceparent, fact }
    }

    /// A payment was accepted.
    #[must_use]
    pub fn created(&self, payment: &Payment) -> Keyed<proto::payment_created::Fact> {
        let id = payment.payment_id.to_string();
        let context = self.context(&payment.merchant_id, id.clone(), payment.version);
        self.keyed(&id, proto::payment_created::Fact { context, payment: Some(self::payment(payment)) })
    }

    /// Some of a payment's orders are to be charged.
    #[must_use]
    pub fn charges<'o>(
        &self,
        payment: &Payment,
        orders: impl Iterator<Item = &'o Order>,
    ) -> Keyed<psp::execute_charges::Fact> {
        let id = payment.payment_id.to_string();
        let charges = orders.map(|order| psp::execute_charges::Charge {
            charge_id: order.charge_id.to_string(),
            payment_order_id: order.payment_order_id.to_string(),
            seller_id: order.seller_id.clone(),
            amount: Some(money(order.amount)),
        });
        let fact = psp::execute_charges::Fact {
            context: self.context(&payment.merchant_id, id.clone(), payment.version),
            payment_id: id.clone(),
            order_id: payment.order_id.clone(),
            payment_token: payment.payment_token.clone(),
            psp_account: payment.psp_account.clone(),
            charges: charges.collect(),
        };
        self.keyed(&id, fact)
    }

    /// An order was captured.
    #[must_use]
    pub fn succeeded(&self, merchant: &str, order: &Order) -> Keyed<proto::payment_orders_succeeded::Fact> {
        let payment = order.payment_id.to_string();
        let fact = proto::payment_orders_succeeded::Fact {
            context: self.context(merchant, order.payment_order_id.to_string(), order.version),
            payment_id: payment.clone(),
            payment_order_id: order.payment_order_id.to_string(),
            charge_id: order.charge_id.to_string(),
            order_id: order.order_id.clone(),
            buyer_id: order.buyer_id.clone(),
            seller_id: order.seller_id.clone(),
            seller_reference: order.seller_reference.clone(),
            amount: Some(money(order.amount)),
            fee: Some(fee(order)),
            psp: order.psp.clone(),
            psp_account: order.psp_account.clone(),
            psp_reference: order.psp_reference.clone(),
        };
        self.keyed(&payment, fact)
    }

    /// An order was not charged.
    #[must_use]
    pub fn failed(&self, merchant: &str, order: &Order) -> Keyed<proto::payment_orders_failed::Fact> {
        let payment = order.payment_id.to_string();
        let fact = proto::payment_orders_failed::Fact {
            context: self.context(merchant, order.payment_order_id.to_string(), order.version),
            payment_id: payment.clone(),
            payment_order_id: order.payment_order_id.to_string(),
            charge_id: order.charge_id.to_string(),
            order_id: order.order_id.clone(),
            buyer_id: order.buyer_id.clone(),
            seller_id: order.seller_id.clone(),
            seller_reference: order.seller_reference.clone(),
            amount: Some(money(order.amount)),
            failure: order.failure.as_ref().map(failure),
            fee: Some(fee(order)),
            psp: order.psp.clone(),
            psp_account: order.psp_account.clone(),
            psp_reference: order.psp_reference.clone(),
        };
        self.keyed(&payment, fact)
    }

    /// A payment is final.
    #[must_use]
    pub fn completed(&self, payment: &crate::store::Head) -> Keyed<proto::payment_completed::Fact> {
        let id = payment.payment_id.to_string();
        let fact = proto::payment_completed::Fact {
            context: self.context(&payment.merchant_id, id.clone(), payment.version),
            payment_id: id.clone(),
            order_id: payment.order_id.clone(),
            state: proto::PaymentState::from(payment.tally.state()).into(),
            total: Some(money(payment.total)),
            captured: Some(money(Money::new(payment.total.currency, payment.captured))),
        };
        self.keyed(&id, fact)
    }
}

/// A finished charge, from psp-worker.
///
/// # Errors
/// Something is missing or unknown; the sentence says what. It is parked, never guessed at.
pub fn completed_report(fact: &psp::charges_completed::Fact) -> Result<Report, String> {
    use psp::charges_completed::fact::Outcome;
    let news = match fact.outcome.as_ref().ok_or("the outcome is missing")? {
        Outcome::Succeeded(succeeded) => News::Succeeded {
            amount: trusted_money(succeeded.amount.as_ref())?,
            psp_reference: succeeded.psp_reference.clone(),
        },
        Outcome::Failed(failed) => News::Failed {
            failure: failure_from(failed.failure.as_ref().ok_or("the failure is missing")?),
            psp_reference: failed.psp_reference.clone(),
        },
    };
    Ok(Report {
        payment_order_id: fact.payment_order_id.parse().map_err(|error| format!("payment_order_id {error}"))?,
        charge_id: fact.charge_id.parse().map_err(|error| format!("charge_id {error}"))?,
        charge_version: fact.context.as_ref().ok_or("the context is missing")?.version,
        attempt_count: fact.attempt_count,
        psp: fact.psp.clone(),
        psp_account: fact.psp_account.clone(),
        news,
    })
}

/// A charge that goes on, from psp-worker.
///
/// # Errors
/// Something is missing; the sentence says what.
pub fn progressed_report(fact: &psp::charges_progressed::Fact) -> Result<Report, String> {
    Ok(Report {
        payment_order_id: fact.payment_order_id.parse().map_err(|error| format!("payment_order_id {error}"))?,
        charge_id: fact.charge_id.parse().map_err(|error| format!("charge_id {error}"))?,
        charge_version: fact.context.as_ref().ok_or("the context is missing")?.version,
        attempt_count: fact.attempt_count,
        psp: String::new(),
        psp_account: String::new(),
        news: News::Progressed {
            uncertain_since: fact.outcome_uncertain_since.as_ref().and_then(time),
            next_action_at: fact.next_action_time.as_ref().and_then(time),
        },
    })
}
