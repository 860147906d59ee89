//! The chart of accounts, as ledger-svc keeps it and balance-svc folds it (ledger.md).

use std::fmt;
use std::str::FromStr;

use crate::money::Currency;
use crate::stored_enum;

stored_enum! {
    /// A type of account.
    AccountType {
        /// Money at the platform's bank.
        PlatformCash = "PLATFORM_CASH",
        /// Captured, not yet settled by the PSP.
        PspReceivable = "PSP_RECEIVABLE",
        /// Settled by line, not yet seen at the bank.
        PspClearing = "PSP_CLEARING",
        /// Authorised, not captured; outside balance-sheet totals.
        AuthReceivable = "AUTH_RECEIVABLE",
        /// The other side of that.
        AuthLiability = "AUTH_LIABILITY",
        /// Earned by a seller, not yet available.
        SellerPending = "SELLER_PENDING",
        /// Available to a seller; may go negative by refunds and disputes.
        SellerPayable = "SELLER_PAYABLE",
        /// Held back from a seller.
        SellerReserve = "SELLER_RESERVE",
        /// Refund asked for, not confirmed by the PSP.
        RefundInTransit = "REFUND_IN_TRANSIT",
        /// Sent to a seller's bank, not confirmed.
        PayoutInTransit = "PAYOUT_IN_TRANSIT",
        /// Money that arrived and is owed back.
        BuyerRefundable = "BUYER_REFUNDABLE",
        /// The platform's commission.
        PlatformFeeRevenue = "PLATFORM_FEE_REVENUE",
        /// What the PSP deducts.
        PspFeeExpense = "PSP_FEE_EXPENSE",
        /// What the card scheme deducts.
        SchemeFeeExpense = "SCHEME_FEE_EXPENSE",
        /// What the issuer deducts.
        InterchangeExpense = "INTERCHANGE_EXPENSE",
        /// What a dispute costs.
        DisputeFeeExpense = "DISPUTE_FEE_EXPENSE",
        /// Disputes nobody repays.
        ChargebackLoss = "CHARGEBACK_LOSS",
        /// Both sides of a conversion.
        FxPosition = "FX_POSITION",
        /// Its revaluation.
        FxGainLoss = "FX_GAIN_LOSS",
    }
}

/// The side on which an account grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Assets and expenses.
    Debit,
    /// Liabilities and revenue.
    Credit,
}

/// What an account stands for in the balance sheet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// What the platform has.
    Asset,
    /// What it owes.
    Liability,
    /// What it earns.
    Revenue,
    /// What it spends.
    Expense,
    /// Outside balance-sheet totals.
    Memo,
    /// Both sides of a conversion.
    Bridge,
}

impl AccountType {
    /// The side on which it grows.
    #[must_use]
    pub const fn normal(self) -> Side {
        match self {
            Self::PlatformCash
            | Self::PspReceivable
            | Self::PspClearing
            | Self::AuthReceivable
            | Self::PspFeeExpense
            | Self::SchemeFeeExpense
            | Self::InterchangeExpense
            | Self::DisputeFeeExpense
            | Self::ChargebackLoss
            | Self::FxPosition => Side::Debit,
            Self::AuthLiability
            | Self::SellerPending
            | Self::SellerPayable
            | Self::SellerReserve
            | Self::RefundInTransit
            | Self::PayoutInTransit
            | Self::BuyerRefundable
            | Self::PlatformFeeRevenue
            | Self::FxGainLoss => Side::Credit,
        }
    }

    /// What it stands for.
    #[must_use]
    pub const fn class(self) -> Class {
        match self {
            Self::PlatformCash | Self::PspReceivable | Self::PspClearing => Class::Asset,
            Self::AuthReceivable | Self::AuthLiability => Class::Memo,
            Self::SellerPending
            | Self::SellerPayable
            | Self::SellerReserve
            | Self::RefundInTransit
            | Self::PayoutInTransit
            | Self::BuyerRefundable => Class::Liability,
            Self::PlatformFeeRevenue | Self::FxGainLoss => Class::Revenue,
            Self::PspFeeExpense
            | Self::SchemeFeeExpense
            | Self::InterchangeExpense
            | Self::DisputeFeeExpense
            | Self::ChargebackLoss => Class::Expense,
            Self::FxPosition => Class::Bridge,
        }
    }

    /// The balance on the normal side of these totals; `None` where it does not fit 64 bits.
    #[must_use]
    pub const fn balance(self, debits: i64, credits: i64) -> Option<i64> {
        match self.normal() {
            Side::Debit => debits.checked_sub(credits),
            Side::Credit => credits.checked_sub(debits),
        }
    }
}

/// An account of one merchant: its type, whose it is, and its currency. On the wire `TYPE.ENTITY.CURRENCY`, split at
/// the first and the last dot, because an entity may hold dots.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Account {
    /// What it holds.
    pub account_type: AccountType,
    /// Whose it is: a seller, a PSP account, a bank account, the platform.
    pub entity: String,
    /// In which currency.
    pub currency: Currency,
}

/// The text is no account code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be TYPE.ENTITY.CURRENCY with a type of the chart of accounts, for example SELLER_PENDING.seller-42.EUR")]
pub struct MalformedCode;

impl Account {
    /// The account of this type, entity and currency.
    pub fn new(account_type: AccountType, entity: impl Into<String>, currency: Currency) -> Self {
        Self { account_type, entity: entity.into(), currency }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.account_type.as_str(), self.entity, self.currency)
    }
}

impl FromStr for Account {
    type Err = MalformedCode;

    fn from_str(code: &str) -> Result<Self, MalformedCode> {
        let (account_type, rest) = code.split_once('.').ok_or(MalformedCode)?;
        let (entity, currency) = rest.rsplit_once('.').ok_or(MalformedCode)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
        if entity.is_empty() || entity.len() > 64 || !entity.chars().all(plain) {
            return Err(MalformedCode);
        }
        Ok(Self {
            account_type: account_type.parse().map_err(|_| MalformedCode)?,
            entity: entity.to_owned(),
            currency: currency.parse().map_err(|_| MalformedCode)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn codes_split_at_the_first_and_the_last_dot() {
        let account: Account = "SELLER_PENDING.a.b.EUR".parse().unwrap();
        assert_eq!((account.entity.as_str(), account.currency.code()), ("a.b", "EUR"));
        assert_eq!(account.to_string(), "SELLER_PENDING.a.b.EUR");
        for wrong in [
            "",
            "SELLER_PENDING",
            "SELLER_PENDING.EUR",
            "SELLER_PENDING..EUR",
            "CASH.a.EUR",
            "SELLER_PENDING.a.EURO",
            "SELLER_PENDING.a b.EUR",
        ] {
            assert_eq!(wrong.parse::<Account>(), Err(MalformedCode), "{wrong}");
        }
    }

    #[test]
    fn balances_stand_on_the_normal_side() {
        assert_eq!(AccountType::PspReceivable.balance(10, 3), Some(7));
        assert_eq!(AccountType::SellerPending.balance(3, 10), Some(7));
        assert_eq!(AccountType::SellerPayable.balance(10, 3), Some(-7));
        assert_eq!(AccountType::PspReceivable.balance(i64::MIN, 1), None);
    }

    proptest! {
        #[test]
        fn every_account_is_read_as_it_is_written(index in 0..AccountType::ALL.len(), entity in "[A-Za-z0-9._:-]{1,64}") {
            let account = Account::new(AccountType::ALL[index], entity, "KWD".parse().unwrap());
            prop_assert_eq!(account.to_string().parse::<Account>().unwrap(), account);
        }
    }
}
