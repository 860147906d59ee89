//! The domain: what an answer of the PSP does to a charge. Pure, no I/O.
//!
//! At most one charge (guarantees, rule 2). A timeout, a reset, a 5xx or a garbled answer is unknown, not failed; it
//! is left only by evidence. While it lasts there is no further call to charge, only look-ups. "Not found" counts only
//! after the PSP's maximum processing time, and allows the same key again, never a new one. Only an error that the PSP
//! has stored under the key opens the next generation. An issuer's decline is never retried. Nothing fails by the
//! clock.

use std::time::Duration;

use chrono::{DateTime, Utc};
use florin::backoff::{Backoff, InquirySchedule};
use florin::id::{ChargeId, EventId, PaymentId, PaymentOrderId};
use florin::money::Money;
use florin::stored_enum;
use rand::Rng;

use crate::psp::{Answer, Declaration};

stored_enum! {
    /// Where a charge stands.
    ChargeState {
        /// Not finished.
        Open = "OPEN",
        /// Money moved. Final.
        Succeeded = "SUCCEEDED",
        /// No money moved, and none will. Final.
        Failed = "FAILED",
        /// The PSP's amount is not ours: an operator decides.
        Review = "REVIEW",
    }
}

stored_enum! {
    /// What is done next with a charge.
    Action {
        /// Call the PSP to charge.
        Charge = "CHARGE",
        /// Ask the PSP what became of it.
        Inquire = "INQUIRE",
    }
}

stored_enum! {
    /// What became of a call to charge.
    AttemptState {
        /// Planned and certainly not sent.
        Created = "CREATED",
        /// Committed and handed to the connection: it may have reached the PSP.
        Sent = "SENT",
        /// The PSP has it and has not decided.
        Pending = "PENDING",
        /// Money moved.
        Succeeded = "SUCCEEDED",
        /// The issuer or the PSP said no.
        Declined = "DECLINED",
        /// A definite answer that this call moved nothing.
        RejectedRetryable = "REJECTED_RETRYABLE",
        /// Nobody knows.
        Unknown = "UNKNOWN",
        /// The PSP's amount is not ours.
        Review = "REVIEW",
    }
}

/// How charges are retried and looked up.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Retries after the first call.
    pub max_retries: i32,
    /// Delays of retries.
    pub backoff: Backoff,
    /// Delays of look-ups.
    pub inquiries: InquirySchedule,
    /// What the PSP is known to do.
    pub declaration: Declaration,
    /// How long after an attempt's commit its request may still be on its way to the PSP.
    pub longest_send: Duration,
}

/// A charge.
#[derive(Debug, Clone, PartialEq)]
pub struct Charge {
    /// Its id: our reference at the PSP.
    pub charge_id: ChargeId,
    /// The payment order that it executes.
    pub payment_order_id: PaymentOrderId,
    /// The payment.
    pub payment_id: PaymentId,
    /// The merchant.
    pub merchant_id: String,
    /// The merchant's id of the order.
    pub order_id: String,
    /// The merchant's id of the seller.
    pub seller_id: String,
    /// What is charged.
    pub amount: Money,
    /// The PSP's token.
    pub payment_token: String,
    /// The account at the PSP.
    pub psp_account: String,
    /// Where it stands.
    pub state: ChargeState,
    /// What is done next; `None` when it is not open.
    pub next_action: Option<Action>,
    /// When.
    pub next_action_at: Option<DateTime<Utc>>,
    /// Of the claim that it was read under.
    pub lease_epoch: i64,
    /// Generation of the key in use.
    pub generation: i32,
    /// Since when that key is in use.
    pub key_since: Option<DateTime<Utc>>,
    /// Calls to charge.
    pub attempt_count: i32,
    /// Calls that count as retries.
    pub retry_count: i32,
    /// Calls in a row that the PSP did not take.
    pub hold_count: i32,
    /// Look-ups.
    pub inquiry_count: i32,
    /// Look-ups since the last call.
    pub inquiry_round: i32,
    /// When the last call was committed.
    pub last_sent_at: Option<DateTime<Utc>>,
    /// Since when nobody knows whether money moved.
    pub uncertain_since: Option<DateTime<Utc>>,
    /// The PSP's id.
    pub psp_reference: String,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// The event that asked for it.
    pub event_id: EventId,
    /// Trace context.
    pub traceparent: String,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// Counts up by one with each change.
    pub version: i64,
    /// The database's time when it was read: ages are measured by no other clock.
    pub read_at: DateTime<Utc>,
}

/// Why a charge failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// A name of `florin.payment.v1.FailureReason` without its prefix.
    pub reason: String,
    /// The PSP's code.
    pub code: String,
    /// For people.
    pub message: String,
}

/// What an answer did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// State of the latest attempt.
    pub attempt: AttemptState,
    /// The PSP's code or a short reason.
    pub code: String,
    /// For people.
    pub message: String,
    /// How long until the next action; `None` when there is none.
    pub delay: Option<Duration>,
}

impl Charge {
    /// The key of the next call: the same for as long as the generation is.
    #[must_use]
    pub fn idempotency_key(&self) -> String {
        format!("{}.charge.{}", self.charge_id, self.generation)
    }

    /// Applies the answer of a call to charge, or of a look-up. The only way a charge changes after a claim.
    pub fn apply(
        &mut self,
        action: Action,
        answer: &Answer,
        rules: &Rules,
        now: DateTime<Utc>,
        random: &mut impl Rng,
    ) -> Verdict {
        debug_assert_eq!(self.state, ChargeState::Open);
        self.version += 1;
        self.updated_at = now;
        if action == Action::Inquire {
            self.inquiry_count += 1;
            self.inquiry_round += 1;
        } else {
            self.inquiry_round = 0;
        }
        let taken = !matches!(answer, Answer::NotTaken { .. });
        if taken {
            self.hold_count = 0;
        }
        match answer {
            Answer::Succeeded { amount, psp_reference } if *amount == self.amount => {
                psp_reference.clone_into(&mut self.psp_reference);
                self.close(ChargeState::Succeeded, AttemptState::Succeeded, String::new(), String::new())
            }
            Answer::Succeeded { amount, psp_reference } => {
                psp_reference.clone_into(&mut self.psp_reference);
                let message = format!("the PSP charged {amount}, not {}", self.amount);
                self.close(ChargeState::Review, AttemptState::Review, "AMOUNT_DIFFERS".into(), message)
            }
            Answer::Declined { reason, code, message, psp_reference } => {
                psp_reference.clone_into(&mut self.psp_reference);
                self.fail(AttemptState::Declined, reason, code, message)
            }
            Answer::Rejected { code, message } => self.rejected(code, message, rules, random),
            Answer::Pending { psp_reference } => {
                psp_reference.clone_into(&mut self.psp_reference);
                self.uncertain_since = None;
                let verdict = Verdict {
                    attempt: AttemptState::Pending,
                    code: "PENDING".into(),
                    message: String::new(),
                    delay: None,
                };
                self.look_up(verdict, rules)
            }
            Answer::NotTaken { why, retry_after, message } if action == Action::Charge => {
                self.hold_count += 1;
                let delay = rules.backoff.delay(u32::try_from(self.hold_count).unwrap_or(1), random);
                let delay = retry_after.map_or(delay, |asked| asked.max(delay));
                self.plan(Action::Charge, AttemptState::RejectedRetryable, why.code(), message, delay)
            }
            Answer::NotTaken { why, message, .. } => self.unknown(action, why.code(), message, rules, now),
            Answer::NotFound if action == Action::Inquire => self.not_found(rules, now, random),
            Answer::NotFound => self.unknown(action, "NOT_FOUND", "the PSP answered a charge by not found", rules, now),
            Answer::Unknown { code, message } => self.unknown(action, code, message, rules, now),
        }
    }

    /// The PSP stored an error: this key moved nothing. The next try gets a new key.
    fn rejected(&mut self, code: &str, message: &str, rules: &Rules, random: &mut impl Rng) -> Verdict {
        if self.retry_count >= rules.max_retries {
            return self.fail(AttemptState::RejectedRetryable, "PROCESSING_ERROR", code, message);
        }
        self.generation += 1;
        self.key_since = None;
        self.retry(AttemptState::RejectedRetryable, code, message, rules, random)
    }

    /// A look-up found nothing. Before the PSP's processing time is over that says nothing at all.
    fn not_found(&mut self, rules: &Rules, now: DateTime<Utc>, random: &mut impl Rng) -> Verdict {
        let declaration = &rules.declaration;
        let message = "the PSP does not know the charge";
        let since =
            |time: Option<DateTime<Utc>>| time.map_or(Duration::ZERO, |time| (now - time).to_std().unwrap_or_default());
        let waited = since(self.last_sent_at);
        if !declaration.reads_own_writes {
            return self.unknown(Action::Inquire, "NOT_FOUND", message, rules, now);
        }
        let over = rules.longest_send + declaration.max_processing;
        if waited < over {
            let mut verdict = self.unknown(Action::Inquire, "NOT_FOUND_YET", message, rules, now);
            // Nothing is learnt before the processing time is over, and everything right after it.
            let counts_in = over.saturating_sub(waited);
            verdict.delay = verdict.delay.map(|delay| delay.min(counts_in));
            return verdict;
        }
        // Nothing moved. The same key may be used again while it is young; a new one never.
        let key_is_young = since(self.key_since) < declaration.key_retention / 2;
        if self.retry_count >= rules.max_retries || !key_is_young {
            return self.fail(
                AttemptState::Unknown,
                "PSP_UNAVAILABLE",
                "NOT_FOUND",
                "the PSP executed none of the attempts",
            );
        }
        self.retry(AttemptState::Unknown, "NOT_FOUND", message, rules, random)
    }

    fn retry(
        &mut self,
        attempt: AttemptState,
        code: &str,
        message: &str,
        rules: &Rules,
        random: &mut impl Rng,
    ) -> Verdict {
        self.uncertain_since = None;
        self.retry_count += 1;
        let delay = rules.backoff.delay(u32::try_from(self.retry_count).unwrap_or(1), random);
        self.plan(Action::Charge, attempt, code, message, delay)
    }

    fn unknown(&mut self, action: Action, code: &str, message: &str, rules: &Rules, now: DateTime<Utc>) -> Verdict {
        // After a look-up that failed, a pending charge is still pending: only a call makes it uncertain.
        let attempt = if action == Action::Inquire && self.uncertain_since.is_none() && !self.psp_reference.is_empty() {
            AttemptState::Pending
        } else {
            let since = self.last_sent_at.unwrap_or(now);
            self.uncertain_since.get_or_insert(since);
            AttemptState::Unknown
        };
        let verdict = Verdict { attempt, code: code.to_owned(), message: message.to_owned(), delay: None };
        self.look_up(verdict, rules)
    }

    fn look_up(&mut self, verdict: Verdict, rules: &Rules) -> Verdict {
        self.next_action = Some(Action::Inquire);
        let next = u32::try_from(self.inquiry_round).unwrap_or_default().saturating_add(1);
        Verdict { delay: Some(rules.inquiries.delay(next)), ..verdict }
    }

    fn plan(&mut self, action: Action, attempt: AttemptState, code: &str, message: &str, delay: Duration) -> Verdict {
        self.next_action = Some(action);
        Verdict { attempt, code: code.to_owned(), message: message.to_owned(), delay: Some(delay) }
    }

    fn fail(&mut self, attempt: AttemptState, reason: &str, code: &str, message: &str) -> Verdict {
        self.failure = Some(Failure { reason: reason.to_owned(), code: code.to_owned(), message: message.to_owned() });
        self.close(ChargeState::Failed, attempt, code.to_owned(), message.to_owned())
    }

    fn close(&mut self, state: ChargeState, attempt: AttemptState, code: String, message: String) -> Verdict {
        self.state = state;
        self.next_action = None;
        self.next_action_at = None;
        self.uncertain_since = None;
        Verdict { attempt, code, message, delay: None }
    }
}

#[cfg(test)]
mod tests;
