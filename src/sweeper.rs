//! Work that is woken by a hint and by time: one path, idempotent, without input. The hint may be lost; the period
//! makes up for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Says that there may be something to do.
#[derive(Debug, Clone, Default)]
pub struct Hint(Arc<Notify>);

impl Hint {
    /// There may be something to do.
    pub fn give(&self) {
        self.0.notify_one();
    }
}

/// What a round of work found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// There may be more at once.
    More,
    /// Nothing is left for now.
    Done,
}

/// Runs rounds of work until `stop`: at once while there is more, else when hinted or when the period has passed.
pub async fn run<F, Fut, E>(name: &'static str, period: Duration, hint: Hint, stop: CancellationToken, work: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<Round, E>>,
    E: std::fmt::Display,
{
    let mut troubled = false;
    while !stop.is_cancelled() {
        match work().await {
            Ok(Round::More) => {
                troubled = false;
                continue;
            }
            Ok(Round::Done) => troubled = false,
            Err(error) if troubled => tracing::debug!(%error, "{name} waits"),
            Err(error) => {
                tracing::warn!(%error, "{name} waits");
                troubled = true;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = hint.0.notified(), if !troubled => {}
            () = tokio::time::sleep(period) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lost_hint_only_costs_the_period() {
        let rounds = Arc::new(AtomicU32::new(0));
        let stop = CancellationToken::new();
        let counter = Arc::clone(&rounds);
        let task = tokio::spawn(run("test", Duration::from_secs(5), Hint::default(), stop.clone(), move || {
            let counter = Arc::clone(&counter);
            async move {
                counter.fetch_add(1, Ordering::SeqCst);
                Ok::<_, String>(Round::Done)
            }
        }));
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(rounds.load(Ordering::SeqCst), 3);
        stop.cancel();
        task.await.unwrap();
    }
}
