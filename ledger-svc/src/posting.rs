//! The domain: which entries a business fact makes. Pure, no I/O.
//!
//! A posting moves one positive amount from one account to another in one currency, so that an entry balances by
//! construction (guarantees, rule 7).

use chrono::{DateTime, Utc};
use florin::account::{Account, AccountType};
use florin::id::{ChargeId, EventId, JournalEntryId, PaymentId, PaymentOrderId};
use florin::money::Money;
use florin::stored_enum;
use uuid::Uuid;

/// The entity of the platform's own accounts.
const PLATFORM: &str = "platform";

stored_enum! {
    /// The kind of business fact.
    Kind {
        /// A charge is authorised and not yet captured.
        AuthHold = "AUTH_HOLD",
        /// A charge is captured, or made in one step.
        Capture = "CAPTURE",
        /// The platform's fee, with the capture.
        Fee = "FEE",
        /// Earned money becomes available.
        Available = "AVAILABLE",
        /// An authorisation is released.
        Void = "VOID",
        /// A line of a PSP's report.
        Settlement = "SETTLEMENT",
        /// Money is sent to a seller's bank.
        Payout = "PAYOUT",
        /// Money is given back to a buyer.
        Refund = "REFUND",
        /// A buyer disputes a charge.
        Dispute = "DISPUTE",
        /// Money is held back, or released.
        Reserve = "RESERVE",
        /// The PSP took money for an order that had failed.
        Unexpected = "UNEXPECTED",
        /// An operator's correction.
        Adjustment = "ADJUSTMENT",
        /// A conversion.
        Fx = "FX",
    }
}

/// One movement of money.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posting {
    /// What grows on the debit side.
    pub debit: Account,
    /// What grows on the credit side.
    pub credit: Account,
    /// Minor units of both accounts' currency; positive.
    pub amount: i64,
}

/// One business fact in the books.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Derived from kind and operation.
    pub entry_id: JournalEntryId,
    /// The merchant.
    pub merchant_id: String,
    /// What kind of fact.
    pub kind: Kind,
    /// What moved the money.
    pub operation_id: Uuid,
    /// The payment, where there is one.
    pub payment_id: Option<PaymentId>,
    /// The payment order, where there is one.
    pub payment_order_id: Option<PaymentOrderId>,
    /// The seller, where there is one.
    pub seller_id: Option<String>,
    /// The event that caused it.
    pub event_id: EventId,
    /// When it happened in the world.
    pub effective_at: DateTime<Utc>,
    /// The movements; the leg is the place, counted from 1.
    pub postings: Vec<Posting>,
}

/// A payment order that was captured.
#[derive(Debug, Clone, PartialEq)]
pub struct Capture {
    /// The merchant.
    pub merchant_id: String,
    /// The payment.
    pub payment_id: PaymentId,
    /// The payment order.
    pub payment_order_id: PaymentOrderId,
    /// The operation.
    pub charge_id: ChargeId,
    /// The seller.
    pub seller_id: String,
    /// The PSP account that took the money.
    pub psp_account: String,
    /// What was captured.
    pub amount: Money,
    /// The frozen fee.
    pub fee: Money,
    /// The event that told.
    pub event_id: EventId,
    /// When it happened.
    pub effective_at: DateTime<Utc>,
}

/// Why a fact cannot be posted: it is parked, never guessed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unpostable {
    /// The fee is in another currency than the amount.
    #[error("the fee is in another currency than the amount")]
    MixedCurrencies,
    /// The amount is not positive.
    #[error("the amount is not positive")]
    NotPositive,
    /// The fee is negative or larger than the amount.
    #[error("the fee is negative or larger than the amount")]
    FeeOutOfRange,
}

impl Capture {
    /// The entries of a charge in one step: the capture, and the fee unless it is zero.
    ///
    /// # Errors
    /// The amounts cannot be posted.
    pub fn entries(&self) -> Result<Vec<Entry>, Unpostable> {
        if self.fee.currency != self.amount.currency {
            return Err(Unpostable::MixedCurrencies);
        }
        if self.amount.minor_units < 1 {
            return Err(Unpostable::NotPositive);
        }
        if !(0..=self.amount.minor_units).contains(&self.fee.minor_units) {
            return Err(Unpostable::FeeOutOfRange);
        }
        let currency = self.amount.currency;
        let pending = Account::new(AccountType::SellerPending, &self.seller_id, currency);
        let receivable = Account::new(AccountType::PspReceivable, &self.psp_account, currency);
        let revenue = Account::new(AccountType::PlatformFeeRevenue, PLATFORM, currency);
        let capture = Posting { debit: receivable, credit: pending.clone(), amount: self.amount.minor_units };
        let mut entries = vec![self.entry(Kind::Capture, capture)];
        if self.fee.minor_units > 0 {
            let fee = Posting { debit: pending, credit: revenue, amount: self.fee.minor_units };
            entries.push(self.entry(Kind::Fee, fee));
        }
        Ok(entries)
    }

    fn entry(&self, kind: Kind, posting: Posting) -> Entry {
        debug_assert!(posting.amount > 0 && posting.debit.currency == posting.credit.currency);
        Entry {
            entry_id: JournalEntryId::of(kind.as_str(), self.charge_id.uuid()),
            merchant_id: self.merchant_id.clone(),
            kind,
            operation_id: self.charge_id.uuid(),
            payment_id: Some(self.payment_id),
            payment_order_id: Some(self.payment_order_id),
            seller_id: Some(self.seller_id.clone()),
            event_id: self.event_id,
            effective_at: self.effective_at,
            postings: vec![posting],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn capture(code: &str, amount: i64, fee: i64) -> Capture {
        let currency = code.parse().unwrap();
        Capture {
            merchant_id: "dev".into(),
            payment_id: PaymentId::from_uuid(Uuid::from_u128(1)),
            payment_order_id: PaymentOrderId::from_uuid(Uuid::from_u128(2)),
            charge_id: ChargeId::from_uuid(Uuid::from_u128(3)),
            seller_id: "alice".into(),
            psp_account: "main".into(),
            amount: Money::new(currency, amount),
            fee: Money::new(currency, fee),
            event_id: EventId::from_uuid(Uuid::from_u128(4)),
            effective_at: DateTime::UNIX_EPOCH,
        }
    }

    /// One line for each posting: kind, debit <- credit : amount.
    fn lines(capture: &Capture) -> Vec<String> {
        let entries = capture.entries().unwrap();
        let line = |entry: &Entry| {
            let kind = entry.kind.as_str();
            entry
                .postings
                .iter()
                .map(move |p| format!("{kind} {} <- {} : {}", p.debit, p.credit, p.amount))
                .collect::<Vec<_>>()
        };
        entries.iter().flat_map(line).collect()
    }

    #[test]
    fn a_charge_in_one_step_is_a_capture_and_a_fee() {
        assert_eq!(
            lines(&capture("EUR", 1000, 35)),
            [
                "CAPTURE PSP_RECEIVABLE.main.EUR <- SELLER_PENDING.alice.EUR : 1000",
                "FEE SELLER_PENDING.alice.EUR <- PLATFORM_FEE_REVENUE.platform.EUR : 35",
            ]
        );
        assert_eq!(
            lines(&capture("JPY", 500, 0)),
            ["CAPTURE PSP_RECEIVABLE.main.JPY <- SELLER_PENDING.alice.JPY : 500"]
        );
    }

    #[test]
    fn what_cannot_be_posted_is_named() {
        assert_eq!(capture("EUR", 0, 0).entries(), Err(Unpostable::NotPositive));
        assert_eq!(capture("EUR", 10, 11).entries(), Err(Unpostable::FeeOutOfRange));
        assert_eq!(capture("EUR", 10, -1).entries(), Err(Unpostable::FeeOutOfRange));
        let mixed = Capture { fee: Money::new("USD".parse().unwrap(), 1), ..capture("EUR", 10, 1) };
        assert_eq!(mixed.entries(), Err(Unpostable::MixedCurrencies));
    }

    #[test]
    fn a_repeated_event_makes_the_same_entries() {
        let first = capture("EUR", 1000, 35);
        let again = Capture { event_id: EventId::new(), ..first.clone() };
        let ids = |capture: &Capture| capture.entries().unwrap().iter().map(|entry| entry.entry_id).collect::<Vec<_>>();
        assert_eq!(ids(&first), ids(&again));
        assert_ne!(ids(&first)[0], ids(&first)[1]);
    }

    proptest! {
        #[test]
        fn every_entry_balances_in_one_currency(amount in 1..=999_999_999_999_i64, share in 0..=100_i64) {
            let fee = i64::try_from(i128::from(amount) * i128::from(share) / 100).unwrap();
            for entry in capture("KWD", amount, fee).entries().unwrap() {
                for posting in entry.postings {
                    prop_assert!(posting.amount > 0);
                    prop_assert_eq!(posting.debit.currency, posting.credit.currency);
                    prop_assert_ne!(posting.debit, posting.credit);
                }
            }
        }
    }
}
