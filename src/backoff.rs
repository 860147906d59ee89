//! How long to wait before the next try.

use std::time::Duration;

use rand::Rng;

/// Exponential backoff with equal jitter: half of the delay is fixed, half is drawn, so that what failed together does
/// not return together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The delay before jitter of the first retry.
    pub base: Duration,
    /// What no delay exceeds.
    pub cap: Duration,
}

impl Backoff {
    /// The delay before retry `n`, counted from 1: `exp = min(base · 2^(n-1), cap)`, then `exp/2 + random(0..=exp/2)`.
    pub fn delay(&self, n: u32, random: &mut impl Rng) -> Duration {
        let half = self.exponential(n) / 2;
        half + random.random_range(Duration::ZERO..=half)
    }

    fn exponential(&self, n: u32) -> Duration {
        let factor = 1_u32.checked_shl(n.saturating_sub(1)).unwrap_or(u32::MAX);
        self.base.checked_mul(factor).map_or(self.cap, |delay| delay.min(self.cap))
    }
}

/// When to ask for an unknown outcome: the given delays first, then doubling up to the cap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InquirySchedule {
    /// The first delays.
    pub first: Vec<Duration>,
    /// What no delay exceeds.
    pub cap: Duration,
}

impl InquirySchedule {
    /// The delay before inquiry `n`, counted from 1.
    #[must_use]
    pub fn delay(&self, n: u32) -> Duration {
        let index = usize::try_from(n.saturating_sub(1)).unwrap_or(usize::MAX);
        if let Some(delay) = self.first.get(index) {
            return *delay;
        }
        let last = self.first.last().copied().unwrap_or(Duration::from_secs(1));
        let doublings = u32::try_from(index + 1 - self.first.len()).unwrap_or(u32::MAX);
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        last.checked_mul(factor).map_or(self.cap, |delay| delay.min(self.cap))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEED_RULE: Backoff = Backoff { base: Duration::from_secs(2), cap: Duration::from_secs(60) };

    #[test]
    fn inquiries_follow_the_schedule_then_double_to_the_cap() {
        let schedule =
            InquirySchedule { first: [1, 5, 30].map(Duration::from_secs).to_vec(), cap: Duration::from_secs(1800) };
        let delays = [1, 2, 3, 4, 5, 9, 10, 400].map(|n| schedule.delay(n).as_secs());
        assert_eq!(delays, [1, 5, 30, 60, 120, 1800, 1800, 1800]);
    }

    proptest! {
        #[test]
        fn a_delay_is_between_half_and_the_whole(n in 1_u32..100) {
            let exponential = 2_u64.saturating_mul(1 << (n - 1).min(40)).min(60);
            let delay = SEED_RULE.delay(n, &mut rand::rng());
            prop_assert!(delay >= Duration::from_secs(exponential) / 2);
            prop_assert!(delay <= Duration::from_secs(exponential));
        }
    }
}
