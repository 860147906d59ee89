//! What `tok_random` meets: the share of timeouts, the latency, and the outcomes of the rest.

use std::str::FromStr;
use std::time::Duration;

use rand::Rng;

use crate::behaviour::Behaviour;

/// A running scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// 20 % timeouts; 50–150 ms; 70 % success, 20 % retryable, 10 % declined.
    Normal,
    /// 25 % timeouts; mostly 0.5–1.5 s; 50 / 45 / 5.
    Peak,
    /// 30 % timeouts; 2–3 s; 50 / 40 / 10.
    Degraded,
    /// No timeouts; 1–2 ms; success only.
    Best,
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_uppercase().as_str() {
            "NORMAL" => Ok(Self::Normal),
            "PEAK" => Ok(Self::Peak),
            "DEGRADED" => Ok(Self::Degraded),
            "BEST" => Ok(Self::Best),
            _ => Err("must be NORMAL, PEAK, DEGRADED or BEST".to_owned()),
        }
    }
}

impl Scenario {
    /// Draws what one call meets: its behaviour and its latency.
    pub fn draw(self, random: &mut impl Rng) -> (Behaviour, Duration) {
        // Percent: timeouts; then success, retryable and declined of the rest; what is left is pending.
        let (timeouts, success, retryable, declined) = match self {
            Self::Normal => (20, 70, 20, 10),
            Self::Peak => (25, 50, 45, 5),
            Self::Degraded => (30, 50, 40, 10),
            Self::Best => (0, 100, 0, 0),
        };
        let latency = Duration::from_millis(self.latency(random));
        if random.random_range(0..100) < timeouts {
            // Half of them act all the same: the caller cannot tell.
            let behaviour = if random.random_bool(0.5) { Behaviour::ActsThenHangs } else { Behaviour::Hangs };
            return (behaviour, latency);
        }
        let drawn = random.random_range(0..100);
        let behaviour = if drawn < success {
            Behaviour::Succeeds
        } else if drawn < success + retryable {
            Behaviour::Transient
        } else if drawn < success + retryable + declined {
            Behaviour::Declines
        } else {
            Behaviour::Pending { seconds: 3 }
        };
        (behaviour, latency)
    }

    fn latency(self, random: &mut impl Rng) -> u64 {
        match self {
            Self::Normal => random.random_range(50..=150),
            Self::Peak => match random.random_range(0..100) {
                0..30 => random.random_range(250..=500),
                30..80 => random.random_range(501..=1500),
                _ => random.random_range(1501..=2500),
            },
            Self::Degraded => random.random_range(2000..=2990),
            Self::Best => random.random_range(1..=2),
        }
    }
}
