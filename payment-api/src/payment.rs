//! The domain: payments and payment orders, and the one function that decides how an order changes. Pure, no I/O.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Utc};
use florin::id::{ChargeId, PaymentId, PaymentOrderId};
use florin::money::{Currency, Money};
use florin::stored_enum;

use crate::fee::Fee;

stored_enum! {
    /// Where a payment order stands. Uncertainty is no state.
    OrderState {
        /// Accepted; nothing has happened at the PSP yet.
        Pending = "PENDING",
        /// The PSP was called and the charge is not finished.
        Processing = "PROCESSING",
        /// The buyer has to act.
        RequiresAction = "REQUIRES_ACTION",
        /// Authorised and not yet captured.
        Authorized = "AUTHORIZED",
        /// Captured. Final.
        Succeeded = "SUCCEEDED",
        /// Not charged. Final.
        Failed = "FAILED",
        /// Cancelled before it was charged. Final.
        Canceled = "CANCELED",
    }
}

stored_enum! {
    /// Where a payment stands, rolled up from its orders.
    PaymentState {
        /// Every order is pending.
        Pending = "PENDING",
        /// Some order is not final.
        Processing = "PROCESSING",
        /// Every order succeeded. Final.
        Succeeded = "SUCCEEDED",
        /// Some orders succeeded, others did not. Final.
        PartiallySucceeded = "PARTIALLY_SUCCEEDED",
        /// No order succeeded. Final.
        Failed = "FAILED",
        /// Every order was cancelled. Final.
        Canceled = "CANCELED",
    }
}

impl OrderState {
    /// Final states are never left.
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Pending | Self::Processing | Self::RequiresAction | Self::Authorized => false,
            Self::Succeeded | Self::Failed | Self::Canceled => true,
        }
    }
}

impl PaymentState {
    /// Final states are never left.
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Pending | Self::Processing => false,
            Self::Succeeded | Self::PartiallySucceeded | Self::Failed | Self::Canceled => true,
        }
    }
}

/// A payment with its orders.
#[derive(Debug, Clone, PartialEq)]
pub struct Payment {
    /// Its id.
    pub payment_id: PaymentId,
    /// The merchant on whose behalf money moves.
    pub merchant_id: String,
    /// The merchant's id of the order.
    pub order_id: String,
    /// The merchant's id of the buyer.
    pub buyer_id: String,
    /// What the buyer pays.
    pub total: Money,
    /// The PSP's token for the buyer's means of payment.
    pub payment_token: String,
    /// The account at the PSP that takes the money.
    pub psp_account: String,
    /// The merchant's description.
    pub description: String,
    /// The merchant's pairs.
    pub metadata: BTreeMap<String, String>,
    /// Where it stands.
    pub state: PaymentState,
    /// W3C trace context of the call that created it.
    pub traceparent: String,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// When its last order became final.
    pub completed_at: Option<DateTime<Utc>>,
    /// Counts up by one with each change.
    pub version: i64,
    /// One for each line of the request, in its order.
    pub orders: Vec<Order>,
}

/// One seller's part of a payment.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// Its id.
    pub payment_order_id: PaymentOrderId,
    /// The payment it belongs to.
    pub payment_id: PaymentId,
    /// The merchant's id of the order.
    pub order_id: String,
    /// The merchant's id of the buyer.
    pub buyer_id: String,
    /// The merchant's id of the seller.
    pub seller_id: String,
    /// The merchant's reference for this part.
    pub seller_reference: String,
    /// Its charge at psp-worker.
    pub charge_id: ChargeId,
    /// What is charged.
    pub amount: Money,
    /// The platform's frozen fee.
    pub fee: Fee,
    /// Where it stands.
    pub state: OrderState,
    /// Minor units captured.
    pub captured: i64,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// Calls to the PSP so far.
    pub attempt_count: i32,
    /// Since when nobody knows whether money moved.
    pub uncertain_since: Option<DateTime<Utc>>,
    /// When psp-worker acts next.
    pub next_psp_action_at: Option<DateTime<Utc>>,
    /// The PSP's connector.
    pub psp: String,
    /// The account at the PSP.
    pub psp_account: String,
    /// The PSP's id of the charge.
    pub psp_reference: String,
    /// Version of the charge that was applied last.
    pub charge_version: i64,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// Counts up by one with each change.
    pub version: i64,
}

/// Why an order was not charged. The reason is a name of `florin.payment.v1.FailureReason` without its prefix; one that
/// this version does not know is carried on unchanged (guarantees, rule 9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Stable reason.
    pub reason: String,
    /// The PSP's own code.
    pub psp_code: String,
    /// A sentence for people.
    pub message: String,
}

/// News of a charge.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// A retry or a look-up is planned, or the outcome became uncertain.
    Progressed {
        /// Since when nobody knows.
        uncertain_since: Option<DateTime<Utc>>,
        /// When psp-worker acts next.
        next_action_at: Option<DateTime<Utc>>,
    },
    /// Money moved.
    Succeeded {
        /// What was captured.
        amount: Money,
        /// The PSP's id of the charge.
        psp_reference: String,
    },
    /// No money moved, and none will.
    Failed {
        /// Why.
        failure: Failure,
        /// The PSP's id of the charge, where it has one.
        psp_reference: String,
    },
}

/// A report of psp-worker about one charge.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The order that was charged.
    pub payment_order_id: PaymentOrderId,
    /// The charge.
    pub charge_id: ChargeId,
    /// Version of the charge that this reports.
    pub charge_version: i64,
    /// Calls to the PSP so far.
    pub attempt_count: i32,
    /// The PSP's connector.
    pub psp: String,
    /// The account at the PSP.
    pub psp_account: String,
    /// What happened.
    pub news: News,
}

/// What a report does to an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The order changed.
    Changed,
    /// A named no-op: the report is known already, or older than what is known.
    Nothing(NoOp),
    /// Money moved for an order that had failed. The order stays as it is; the fact is recorded and owed back.
    UnexpectedCharge,
    /// The report cannot be true; a person has to look.
    Contradiction(&'static str),
}

/// Why a report changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoOp {
    /// The same was reported before.
    Duplicate,
    /// The order was final before.
    Late,
    /// A newer version of the charge was reported before.
    Stale,
}

impl fmt::Display for NoOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Duplicate => "duplicate",
            Self::Late => "late",
            Self::Stale => "stale",
        })
    }
}

impl Order {
    /// Applies a report: the only way an order changes. Final states are never left, versions count up by one,
    /// duplicates and late reports are named, and moved money is never overlooked (guarantees, rule 6).
    pub fn apply(&mut self, report: &Report, now: DateTime<Utc>) -> Effect {
        use OrderState::{Authorized, Canceled, Failed, Pending, Processing, RequiresAction, Succeeded};
        if report.charge_id != self.charge_id {
            return Effect::Contradiction("CHARGE_OF_ANOTHER_ORDER");
        }
        match (self.state, &report.news) {
            (Pending | Processing | RequiresAction | Authorized, News::Progressed { .. })
                if report.charge_version <= self.charge_version =>
            {
                return Effect::Nothing(NoOp::Stale);
            }
            (
                Pending | Processing | RequiresAction | Authorized,
                News::Progressed { uncertain_since, next_action_at },
            ) => {
                self.state = Processing;
                self.uncertain_since = *uncertain_since;
                self.next_psp_action_at = *next_action_at;
            }
            (Pending | Processing | RequiresAction | Authorized, News::Succeeded { amount, psp_reference }) => {
                if *amount != self.amount {
                    return Effect::Contradiction("AMOUNT_DIFFERS");
                }
                self.finish(Succeeded, psp_reference);
                self.captured = amount.minor_units;
            }
            (Pending | Processing | RequiresAction | Authorized, News::Failed { failure, psp_reference }) => {
                self.finish(Failed, psp_reference);
                self.failure = Some(failure.clone());
            }
            (Succeeded, News::Succeeded { .. }) | (Failed, News::Failed { .. }) => {
                return Effect::Nothing(NoOp::Duplicate);
            }
            (Failed | Canceled, News::Succeeded { .. }) => return Effect::UnexpectedCharge,
            (Succeeded, News::Failed { .. }) => return Effect::Contradiction("FAILED_AFTER_SUCCESS"),
            (Canceled, News::Failed { .. }) | (Succeeded | Failed | Canceled, News::Progressed { .. }) => {
                return Effect::Nothing(NoOp::Late);
            }
        }
        self.psp.clone_from(&report.psp);
        self.psp_account.clone_from(&report.psp_account);
        self.attempt_count = self.attempt_count.max(report.attempt_count);
        self.charge_version = report.charge_version;
        self.version += 1;
        self.updated_at = now;
        Effect::Changed
    }

    fn finish(&mut self, state: OrderState, psp_reference: &str) {
        debug_assert!(state.is_final() && !self.state.is_final());
        self.state = state;
        self.uncertain_since = None;
        self.next_psp_action_at = None;
        psp_reference.clone_into(&mut self.psp_reference);
    }
}

/// How many of a payment's orders stand where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// All of them.
    pub orders: i32,
    /// Not final.
    pub open: i32,
    /// Succeeded.
    pub succeeded: i32,
    /// Cancelled.
    pub canceled: i32,
}

impl Tally {
    /// The payment's state once something has happened to one of its orders.
    #[must_use]
    pub const fn state(self) -> PaymentState {
        if self.open > 0 {
            PaymentState::Processing
        } else if self.succeeded == self.orders {
            PaymentState::Succeeded
        } else if self.succeeded > 0 {
            PaymentState::PartiallySucceeded
        } else if self.canceled == self.orders {
            PaymentState::Canceled
        } else {
            PaymentState::Failed
        }
    }
}

/// The sum of amounts of one currency; `None` where it does not fit.
#[must_use]
pub fn sum(currency: Currency, amounts: impl IntoIterator<Item = Money>) -> Option<Money> {
    amounts.into_iter().try_fold(Money::new(currency, 0), |sum, amount| sum.checked_add(amount).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(state: OrderState) -> Order {
        Order {
            payment_order_id: PaymentOrderId::from_uuid(uuid::Uuid::nil()),
            payment_id: PaymentId::from_uuid(uuid::Uuid::nil()),
            order_id: "o".into(),
            buyer_id: "b".into(),
            seller_id: "s".into(),
            seller_reference: String::new(),
            charge_id: ChargeId::from_uuid(uuid::Uuid::nil()),
            amount: Money::new("EUR".parse().unwrap(), 100),
            fee: Fee { minor_units: 3, schedule_id: String::new(), schedule_version: 0 },
            state,
            captured: 0,
            failure: (state == OrderState::Failed).then(failure),
            attempt_count: 1,
            uncertain_since: None,
            next_psp_action_at: None,
            psp: String::new(),
            psp_account: String::new(),
            psp_reference: String::new(),
            charge_version: 5,
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
            version: 1,
        }
    }

    fn failure() -> Failure {
        Failure { reason: "DECLINED".into(), psp_code: "05".into(), message: "no".into() }
    }

    fn report(charge_version: i64, news: News) -> Report {
        Report {
            payment_order_id: PaymentOrderId::from_uuid(uuid::Uuid::nil()),
            charge_id: ChargeId::from_uuid(uuid::Uuid::nil()),
            charge_version,
            attempt_count: 2,
            psp: "simulator".into(),
            psp_account: "main".into(),
            news,
        }
    }

    fn progressed() -> News {
        News::Progressed { uncertain_since: Some(DateTime::UNIX_EPOCH), next_action_at: None }
    }

    fn succeeded(units: i64) -> News {
        News::Succeeded { amount: Money::new("EUR".parse().unwrap(), units), psp_reference: "psp-1".into() }
    }

    fn failed() -> News {
        News::Failed { failure: failure(), psp_reference: String::new() }
    }

    #[test]
    fn every_state_answers_every_report() {
        use OrderState as S;
        let changed = |state| (Effect::Changed, state);
        let nothing = |no_op, state| (Effect::Nothing(no_op), state);
        #[rustfmt::skip]
        let cases = [
            (S::Pending,    report(6, progressed()),    changed(S::Processing)),
            (S::Pending,    report(5, progressed()),    nothing(NoOp::Stale, S::Pending)),
            (S::Pending,    report(6, succeeded(100)),  changed(S::Succeeded)),
            (S::Pending,    report(6, succeeded(99)),   (Effect::Contradiction("AMOUNT_DIFFERS"), S::Pending)),
            (S::Pending,    report(6, failed()),        changed(S::Failed)),
            (S::Processing, report(6, succeeded(100)),  changed(S::Succeeded)),
            (S::Processing, report(1, failed()),        changed(S::Failed)),
            (S::Authorized, report(6, succeeded(100)),  changed(S::Succeeded)),
            (S::Succeeded,  report(6, succeeded(100)),  nothing(NoOp::Duplicate, S::Succeeded)),
            (S::Succeeded,  report(9, progressed()),    nothing(NoOp::Late, S::Succeeded)),
            (S::Succeeded,  report(6, failed()),        (Effect::Contradiction("FAILED_AFTER_SUCCESS"), S::Succeeded)),
            (S::Failed,     report(6, failed()),        nothing(NoOp::Duplicate, S::Failed)),
            (S::Failed,     report(6, succeeded(100)),  (Effect::UnexpectedCharge, S::Failed)),
            (S::Canceled,   report(6, succeeded(100)),  (Effect::UnexpectedCharge, S::Canceled)),
            (S::Canceled,   report(6, failed()),        nothing(NoOp::Late, S::Canceled)),
        ];
        for (state, report, (effect, after)) in cases {
            let mut order = order(state);
            assert_eq!(order.apply(&report, DateTime::UNIX_EPOCH), effect, "{state:?} {report:?}");
            assert_eq!(order.state, after, "{state:?} {report:?}");
        }
    }

    #[test]
    fn payments_roll_up() {
        use PaymentState as P;
        for (orders, open, succeeded, canceled, state) in [
            (3, 2, 1, 0, P::Processing),
            (3, 0, 3, 0, P::Succeeded),
            (3, 0, 1, 0, P::PartiallySucceeded),
            (3, 0, 1, 2, P::PartiallySucceeded),
            (3, 0, 0, 0, P::Failed),
            (3, 0, 0, 2, P::Failed),
            (3, 0, 0, 3, P::Canceled),
        ] {
            assert_eq!(Tally { orders, open, succeeded, canceled }.state(), state);
        }
    }

    fn any_report() -> impl Strategy<Value = Report> {
        let news = prop_oneof![Just(progressed()), Just(succeeded(100)), Just(failed())];
        (0_i64..12, news).prop_map(|(version, news)| report(version, news))
    }

    proptest! {
        /// Whatever comes, in whatever order: final states are never left and versions count up by one.
        #[test]
        fn an_order_is_a_lattice(reports in proptest::collection::vec(any_report(), 0..30)) {
            let mut order = order(OrderState::Pending);
            for report in reports {
                let before = order.clone();
                let effect = order.apply(&report, DateTime::UNIX_EPOCH);
                let changed = effect == Effect::Changed;
                prop_assert_eq!(order.version - before.version, i64::from(changed));
                prop_assert!(changed || order == before, "no-ops change nothing");
                prop_assert!(!before.state.is_final() || order.state == before.state);
                prop_assert_eq!(order.state == OrderState::Failed, order.failure.is_some());
                prop_assert_eq!(order.captured, if order.state == OrderState::Succeeded { 100 } else { 0 });
            }
        }
    }
}
