//! What a call meets: by test token, by rate, or by the running scenario. All of it drawn from the seed, the charge's
//! reference and the number of the call, so that a run repeats whatever order the calls come in.

use std::hash::Hasher as _;
use std::str::FromStr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng as _};

use crate::scenario::Scenario;

/// What the PSP does with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Charges and says so.
    Succeeds,
    /// The issuer says no.
    Declines,
    /// Says no for want of money.
    DeclinesFunds,
    /// Does not know the token.
    RefusesToken,
    /// Stores an error under the key: nothing moved, a new key may try again.
    Transient,
    /// Does nothing and never answers.
    Hangs,
    /// Charges and never answers.
    ActsThenHangs,
    /// Charges and breaks the connection.
    ActsThenResets,
    /// Charges long after the caller has gone, and never answers.
    ActsLate,
    /// Says that it is deciding, and succeeds after that time.
    Pending {
        /// Until it is decided.
        seconds: u64,
    },
    /// Says that it is deciding, and declines after that time.
    PendingThenDeclined {
        /// Until it is decided.
        seconds: u64,
    },
    /// Charges and answers what nobody can read.
    Garbage,
    /// 429 with Retry-After.
    Throttles,
    /// 503, nothing done, nothing stored.
    Down,
    /// Charges another amount than it was asked for.
    WrongAmount,
}

/// Names of behaviours, for tokens (`tok_<name>`) and rates.
const NAMES: [(&str, Behaviour); 15] = [
    ("ok", Behaviour::Succeeds),
    ("declined", Behaviour::Declines),
    ("insufficient_funds", Behaviour::DeclinesFunds),
    ("invalid", Behaviour::RefusesToken),
    ("transient", Behaviour::Transient),
    ("timeout", Behaviour::Hangs),
    ("acts_then_hangs", Behaviour::ActsThenHangs),
    ("acts_then_resets", Behaviour::ActsThenResets),
    ("acts_late", Behaviour::ActsLate),
    ("pending_2s", Behaviour::Pending { seconds: 2 }),
    ("pending_30s", Behaviour::Pending { seconds: 30 }),
    ("garbage", Behaviour::Garbage),
    ("throttled", Behaviour::Throttles),
    ("psp_down", Behaviour::Down),
    ("wrong_amount", Behaviour::WrongAmount),
];

/// Behaviours by rate, in percent of all calls: `declined=5,garbage=1`.
#[derive(Debug, Clone, Default)]
pub struct Rates(Vec<(u32, Behaviour)>);

impl FromStr for Rates {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pairs = text.split(',').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, percent) = pair.split_once('=').ok_or_else(|| format!("{pair:?} is not NAME=PERCENT"))?;
            let behaviour =
                NAMES.iter().find(|(known, _)| *known == name).ok_or_else(|| format!("{name:?} is no behaviour"))?.1;
            let percent = percent.parse().ok().filter(|percent| *percent <= 100);
            Ok((percent.ok_or_else(|| format!("{pair:?} needs 0 to 100 percent"))?, behaviour))
        });
        let rates: Vec<(u32, Behaviour)> = pairs.collect::<Result<_, String>>()?;
        if rates.iter().map(|(percent, _)| percent).sum::<u32>() > 100 {
            return Err("the rates add up to more than 100 percent".to_owned());
        }
        Ok(Self(rates))
    }
}

/// What makes a run repeat.
#[derive(Debug, Clone, Copy)]
pub struct Draw<'a> {
    /// Of the run.
    pub seed: u64,
    /// The caller's reference.
    pub subject: &'a str,
    /// Which call of this charge it is, counted from 1.
    pub call: u32,
}

/// What one call meets, and after how long it is answered.
pub fn choose(token: &str, scenario: Scenario, rates: &Rates, draw: Draw<'_>) -> (Behaviour, Duration) {
    let mut hasher = fnv::FnvHasher::with_key(draw.seed);
    hasher.write(draw.subject.as_bytes());
    hasher.write_u32(draw.call);
    let mut random = StdRng::seed_from_u64(hasher.finish());
    let brief = Duration::from_millis(random.random_range(1..=3));
    let mut drawn = random.random_range(0..100);
    for (percent, behaviour) in &rates.0 {
        if drawn < *percent {
            return (*behaviour, brief);
        }
        drawn -= percent;
    }
    let name = token.strip_prefix("tok_").unwrap_or(token);
    match name {
        "random" => scenario.draw(&mut random),
        // The first call misbehaves, the next ones do not.
        "timeout_then_ok" | "transient_then_ok" | "throttled_then_ok" | "psp_down_then_ok" if draw.call > 1 => {
            (Behaviour::Succeeds, brief)
        }
        "pending_then_declined" => (Behaviour::PendingThenDeclined { seconds: 2 }, brief),
        _ => {
            let first = name.strip_suffix("_then_ok").unwrap_or(name);
            let known = NAMES.iter().find(|(known, _)| *known == first).map(|(_, behaviour)| *behaviour);
            (known.unwrap_or(Behaviour::RefusesToken), brief)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(token: &str, scenario: Scenario, subject: &str, call: u32) -> Behaviour {
        choose(token, scenario, &Rates::default(), Draw { seed: 7, subject, call }).0
    }

    #[test]
    fn tokens_script_the_outcome() {
        assert_eq!(met("tok_ok", Scenario::Degraded, "a", 1), Behaviour::Succeeds);
        assert_eq!(met("tok_timeout_then_ok", Scenario::Best, "a", 1), Behaviour::Hangs);
        assert_eq!(met("tok_timeout_then_ok", Scenario::Best, "a", 2), Behaviour::Succeeds);
        assert_eq!(met("tok_never_heard_of", Scenario::Best, "a", 1), Behaviour::RefusesToken);
    }

    #[test]
    fn a_run_repeats_whatever_the_order() {
        let run = |order: &mut dyn Iterator<Item = u32>| {
            let mut met: Vec<_> = order.map(|n| (n, met("tok_random", Scenario::Normal, &n.to_string(), 1))).collect();
            met.sort_by_key(|(n, _)| *n);
            met
        };
        assert_eq!(run(&mut (0..200)), run(&mut (0..200).rev()));
    }

    #[test]
    fn scenarios_keep_their_shares() {
        let calls = 10_000;
        let succeeded = (0..calls)
            .filter(|n| met("tok_random", Scenario::Normal, &n.to_string(), 1) == Behaviour::Succeeds)
            .count();
        // 70 % of the 80 % that do not time out.
        assert!((5400..5800).contains(&succeeded), "{succeeded}");
        assert!((0..calls).all(|n| met("tok_random", Scenario::Best, &n.to_string(), 1) == Behaviour::Succeeds));
    }

    #[test]
    fn rates_are_checked() {
        assert!("declined=5,garbage=1".parse::<Rates>().is_ok());
        for wrong in ["declined", "nonsense=1", "declined=101", "declined=60,garbage=60"] {
            assert!(wrong.parse::<Rates>().is_err(), "{wrong}");
        }
    }
}
