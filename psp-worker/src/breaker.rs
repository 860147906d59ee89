//! The circuit breaker of a PSP account: stops calling a PSP that answers at once that it cannot.
//!
//! What counts is a refusal: a connection that is not accepted, a 5xx, wrong credentials. A timeout does not: it
//! already holds a slot of the bulkhead for its whole deadline, and a PSP that is slow still charges, so that cutting
//! it off would leave orders waiting that would have been paid.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use florin::clock::Clock;

/// Refusals in a row that open the breaker.
const THRESHOLD: u32 = 20;
/// How long it stays open before it lets a probe through.
const OPEN_FOR: Duration = Duration::from_secs(1);
/// The same after 401 or 403: a person has to mend the credentials.
const FORBIDDEN_FOR: Duration = Duration::from_secs(15);

/// How long a probe may take before the next: one that is lost must not keep the breaker open for ever.
const PROBE_FOR: Duration = Duration::from_secs(10);

/// How a call went, for the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// The PSP answered, whatever it said; or was slow.
    Reached,
    /// The PSP did not take the call.
    Refused,
    /// The PSP does not let us in.
    Forbidden,
}

#[derive(Debug, Default)]
struct State {
    refusals: u32,
    /// Closed until this time; then one probe.
    open_until: Option<Instant>,
    /// A probe is under way, at the longest until then.
    probing_until: Option<Instant>,
    forbidden: bool,
}

/// The breaker.
#[derive(Debug, Clone)]
pub struct Breaker {
    clock: Arc<dyn Clock>,
    state: Arc<Mutex<State>>,
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Arc::default() }
    }

    /// How many of `wanted` calls may be made now: all while it is closed, none while it is open, one probe after.
    #[must_use]
    pub fn allowance(&self, wanted: usize) -> usize {
        let now = self.clock.instant();
        let mut state = self.lock();
        match state.open_until {
            None => wanted,
            Some(until) if now < until || state.probing_until.is_some_and(|probing| now < probing) => 0,
            Some(_) => {
                state.probing_until = (wanted > 0).then(|| now + PROBE_FOR);
                wanted.min(1)
            }
        }
    }

    /// A probe was allowed and there was nothing to call for.
    pub fn unused(&self) {
        self.lock().probing_until = None;
    }

    /// Notes how a call went.
    pub fn note(&self, signal: Signal) {
        let now = self.clock.instant();
        let mut state = self.lock();
        let was_open = state.open_until.is_some();
        match signal {
            Signal::Reached => *state = State::default(),
            Signal::Refused => {
                state.refusals = state.refusals.saturating_add(1);
                state.probing_until = None;
                if state.refusals >= THRESHOLD || was_open {
                    state.open_until = Some(now + OPEN_FOR);
                }
            }
            Signal::Forbidden => {
                state.probing_until = None;
                state.forbidden = true;
                state.open_until = Some(now + FORBIDDEN_FOR);
            }
        }
        let is_open = state.open_until.is_some();
        drop(state);
        if was_open != is_open {
            tracing::warn!(open = is_open, "the PSP's circuit breaker {}", if is_open { "opens" } else { "closes" });
        }
        metrics::gauge!("florin_psp_breaker_open").set(if is_open { 1.0 } else { 0.0 });
    }

    /// What is wrong with the PSP, as far as the breaker knows.
    ///
    /// # Errors
    /// The breaker is open; the sentence says why.
    pub fn health(&self) -> Result<(), String> {
        let state = self.lock();
        match (state.open_until, state.forbidden) {
            (None, _) => Ok(()),
            (Some(_), true) => Err("the PSP refuses our credentials; calls are stopped".to_owned()),
            (Some(_), false) => Err("the PSP takes no calls; the breaker is open".to_owned()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::*;

    #[derive(Debug)]
    struct ManualClock(Mutex<Instant>);

    impl ManualClock {
        fn pass(&self, duration: Duration) {
            *self.0.lock().unwrap() += duration;
        }
    }

    impl Clock for ManualClock {
        fn now(&self) -> DateTime<Utc> {
            DateTime::UNIX_EPOCH
        }

        fn instant(&self) -> Instant {
            *self.0.lock().unwrap()
        }
    }

    fn breaker() -> (Arc<ManualClock>, Breaker) {
        let clock = Arc::new(ManualClock(Mutex::new(florin::clock::SystemClock.instant())));
        let breaker = Breaker::new(Arc::clone(&clock) as Arc<dyn Clock>);
        (clock, breaker)
    }

    #[test]
    fn opens_after_refusals_in_a_row_and_probes() {
        let (clock, breaker) = breaker();
        for _ in 1..THRESHOLD {
            breaker.note(Signal::Refused);
        }
        assert_eq!(breaker.allowance(64), 64);
        breaker.note(Signal::Refused);
        assert_eq!(breaker.allowance(64), 0);
        clock.pass(OPEN_FOR);
        assert_eq!(breaker.allowance(64), 1, "one probe");
        assert_eq!(breaker.allowance(64), 0, "not two");
        breaker.note(Signal::Refused);
        assert_eq!(breaker.allowance(64), 0, "open again");
        clock.pass(OPEN_FOR);
        assert_eq!(breaker.allowance(64), 1);
        breaker.note(Signal::Reached);
        assert_eq!(breaker.allowance(64), 64);
    }

    #[test]
    fn wrong_credentials_stop_at_once() {
        let (clock, breaker) = breaker();
        breaker.note(Signal::Forbidden);
        clock.pass(OPEN_FOR);
        assert_eq!(breaker.allowance(64), 0);
        assert!(breaker.health().unwrap_err().contains("credentials"));
        clock.pass(FORBIDDEN_FOR);
        assert_eq!(breaker.allowance(64), 1);
    }

    #[test]
    fn an_unused_probe_is_given_back() {
        let (clock, breaker) = breaker();
        breaker.note(Signal::Forbidden);
        clock.pass(FORBIDDEN_FOR);
        assert_eq!(breaker.allowance(1), 1);
        breaker.unused();
        assert_eq!(breaker.allowance(1), 1);
    }
}
