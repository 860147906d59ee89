//! The platform's fee: computed at creation from a schedule, and frozen. The ledger only posts it.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use chrono::{DateTime, Utc};
use florin::money::{Currency, Money};
use florin::sweeper::{self, Hint, Round};
use rust_decimal::prelude::ToPrimitive as _;
use rust_decimal::{Decimal, RoundingStrategy};
use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// How often schedules are read again. A new version should be effective from a time further ahead than this.
const REFRESH: Duration = Duration::from_secs(5);
/// Stands for any merchant or seller.
const ANY: &str = "*";

/// A version of a schedule for one currency. Amounts are in minor units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Id of the schedule.
    pub schedule_id: String,
    /// Counts up with each change.
    pub version: i32,
    /// The merchant, or `*`.
    pub merchant_id: String,
    /// The seller, or `*`.
    pub seller_id: String,
    /// The currency of the amounts.
    pub currency: String,
    /// Hundredths of a percent of the amount.
    pub basis_points: i32,
    /// Added to that.
    pub fixed: i64,
    /// No fee is lower.
    pub minimum: i64,
    /// No fee is higher.
    pub maximum: Option<i64>,
    /// Since when it holds.
    pub effective_from: DateTime<Utc>,
}

/// A fee with where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fee {
    /// Minor units of the payment order's currency; never more than its amount.
    pub minor_units: i64,
    /// Id of the schedule; empty where none applied.
    pub schedule_id: String,
    /// Version of the schedule.
    pub schedule_version: i32,
}

impl Schedule {
    /// The fee of an amount: percentage plus fixed part, rounded half to even, within minimum and maximum, and never
    /// above the amount itself (ledger.md).
    #[must_use]
    pub fn fee(&self, amount: i64) -> i64 {
        let share = Decimal::from(amount) * Decimal::new(i64::from(self.basis_points), 4);
        let exact = share + Decimal::from(self.fixed);
        let rounded = exact.round_dp_with_strategy(0, RoundingStrategy::MidpointNearestEven);
        // At most 999,999,999,999 and a fixed part: far inside 64 bits, and bounded by the amount in any case.
        let fee = rounded.to_i64().unwrap_or(i64::MAX).max(self.minimum);
        fee.min(self.maximum.unwrap_or(i64::MAX)).clamp(0, amount)
    }
}

/// The schedules that this process knows; read again every few seconds.
#[derive(Debug, Clone, Default)]
pub struct Schedules(Arc<RwLock<Option<Arc<Vec<Schedule>>>>>);

impl Schedules {
    /// Reads them again and again until `stop`.
    pub async fn run(self, store: Store, stop: CancellationToken) {
        sweeper::run("fee schedules", REFRESH, Hint::default(), stop, || self.refresh(&store)).await;
    }

    async fn refresh(&self, store: &Store) -> Result<Round, sqlx::Error> {
        let read = Arc::new(store.fee_schedules().await?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(read);
        Ok(Round::Done)
    }

    /// The schedules, read now if they never were: a fee is never guessed.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn current(&self, store: &Store) -> Result<Arc<Vec<Schedule>>, sqlx::Error> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known {
            return Ok(known);
        }
        self.refresh(store).await?;
        Ok(self.0.read().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default())
    }
}

/// The fee of an amount by the schedule that fits best: the seller's, else the merchant's, else the platform's; of
/// these the one effective last.
#[must_use]
pub fn fee(schedules: &[Schedule], merchant: &str, seller: &str, amount: Money, now: DateTime<Utc>) -> Fee {
    let fits = |schedule: &&Schedule| {
        schedule.currency == amount.currency.code()
            && [merchant, ANY].contains(&schedule.merchant_id.as_str())
            && [seller, ANY].contains(&schedule.seller_id.as_str())
            && schedule.effective_from <= now
    };
    let rank = |schedule: &&Schedule| {
        (schedule.seller_id != ANY, schedule.merchant_id != ANY, schedule.effective_from, schedule.version)
    };
    match schedules.iter().filter(fits).max_by_key(rank) {
        Some(schedule) => Fee {
            minor_units: schedule.fee(amount.minor_units),
            schedule_id: schedule.schedule_id.clone(),
            schedule_version: schedule.version,
        },
        None => Fee { minor_units: 0, schedule_id: String::new(), schedule_version: 0 },
    }
}

/// The zero of a currency.
#[must_use]
pub fn zero(currency: Currency) -> Money {
    Money::new(currency, 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn schedule(basis_points: i32, fixed: i64, minimum: i64, maximum: Option<i64>) -> Schedule {
        Schedule {
            schedule_id: "s".into(),
            version: 1,
            merchant_id: ANY.into(),
            seller_id: ANY.into(),
            currency: "EUR".into(),
            basis_points,
            fixed,
            minimum,
            maximum,
            effective_from: DateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn fees_round_half_to_even_within_their_bounds() {
        #[rustfmt::skip]
        let cases = [
            // basis points, fixed, minimum, maximum, amount -> fee
            (250,  0, 0, None,       1000,   25),
            (250,  0, 0, None,        100,    2), // 2.5 to even
            (250,  0, 0, None,        140,    4), // 3.5 to even
            (250, 10, 0, None,       1000,   35),
            (250,  0, 50, None,       100,   50),
            (250,  0, 0, Some(20),   1000,   20),
            (  0, 200, 0, None,        50,   50), // the prototype's flat fee was larger than the amount
            (10000, 1, 0, None, 999_999_999_999, 999_999_999_999),
            (  0,  0, 0, None,          1,    0),
        ];
        for (basis_points, fixed, minimum, maximum, amount, fee) in cases {
            assert_eq!(schedule(basis_points, fixed, minimum, maximum).fee(amount), fee, "{basis_points} of {amount}");
        }
    }

    #[test]
    fn the_closest_schedule_that_is_effective_wins() {
        let now = DateTime::from_timestamp(1000, 0).unwrap();
        let amount = Money::new("EUR".parse().unwrap(), 1000);
        let of = |id: &str, merchant: &str, seller: &str, from: i64, version: i32| Schedule {
            schedule_id: id.into(),
            merchant_id: merchant.into(),
            seller_id: seller.into(),
            version,
            effective_from: DateTime::from_timestamp(from, 0).unwrap(),
            ..schedule(100, 0, 0, None)
        };
        let mut schedules = vec![of("platform", ANY, ANY, 0, 1)];
        let chosen = |schedules: &[Schedule]| {
            let fee = fee(schedules, "dev", "alice", amount, now);
            (fee.schedule_id, fee.schedule_version)
        };
        assert_eq!(chosen(&schedules), ("platform".into(), 1));
        schedules.push(of("platform", ANY, ANY, 500, 2));
        assert_eq!(chosen(&schedules), ("platform".into(), 2));
        schedules.push(of("platform", ANY, ANY, 1001, 3));
        assert_eq!(chosen(&schedules), ("platform".into(), 2), "version 3 is not effective yet");
        schedules.push(of("merchant", "dev", ANY, 0, 1));
        assert_eq!(chosen(&schedules), ("merchant".into(), 1));
        schedules.push(of("seller", ANY, "alice", 0, 1));
        assert_eq!(chosen(&schedules), ("seller".into(), 1));
        schedules.push(of("other seller", "dev", "bob", 0, 1));
        assert_eq!(chosen(&schedules), ("seller".into(), 1));
        assert_eq!(fee(&[], "dev", "alice", amount, now).minor_units, 0);
    }

    proptest! {
        #[test]
        fn no_fee_exceeds_its_amount(points in 0..=10_000_i32, fixed in 0..=i64::MAX, amount in 1..=999_999_999_999_i64) {
            let fee = schedule(points, fixed, 0, None).fee(amount);
            prop_assert!((0..=amount).contains(&fee));
        }
    }
}
