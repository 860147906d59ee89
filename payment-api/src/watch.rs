//! Watching: who waits for a payment is told when it changes.
//!
//! A commit of this process tells at once; other replicas' commits show by polling id and version of all watched
//! payments with one statement per 100 ms.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use florin::id::PaymentId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::store::Store;

/// Between two polls.
const PERIOD: Duration = Duration::from_millis(100);

/// How far a payment is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Signal {
    /// Its version.
    pub version: i64,
    /// Whether it will never change again.
    pub is_final: bool,
}

/// All payments that somebody watches.
#[derive(Debug, Clone, Default)]
pub struct Watches(Arc<Mutex<HashMap<PaymentId, watch::Sender<Signal>>>>);

/// One watch. Ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    payment_id: PaymentId,
    signals: watch::Receiver<Signal>,
    watches: Watches,
}

impl Watches {
    /// Begins to watch. Do it before the first look, so that no change falls between.
    #[must_use]
    pub fn begin(&self, payment_id: PaymentId) -> Watch {
        let mut watched = self.lock();
        let sender = watched.entry(payment_id).or_insert_with(|| watch::Sender::new(Signal::default()));
        Watch { payment_id, signals: sender.subscribe(), watches: self.clone() }
    }

    /// Tells what has changed; versions only go up.
    pub fn tell(&self, changed: &[(PaymentId, Signal)]) {
        let watched = self.lock();
        for (payment_id, signal) in changed {
            if let Some(sender) = watched.get(payment_id) {
                sender.send_if_modified(|known| {
                    let newer = signal.version > known.version;
                    if newer {
                        *known = *signal;
                    }
                    newer
                });
            }
        }
    }

    /// Polls for other replicas' commits until `stop`.
    pub async fn run(self, store: Store, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let ids: Vec<Uuid> = self.lock().keys().map(|id| id.uuid()).collect();
            if !ids.is_empty() {
                match store.signals(&ids).await {
                    Ok(signals) => self.tell(&signals),
                    Err(error) => tracing::debug!(%error, "watched payments could not be read"),
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PaymentId, watch::Sender<Signal>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// Waits until the payment has a version after `version`.
    pub async fn after(&mut self, version: i64) -> Signal {
        match self.signals.wait_for(|signal| signal.version > version).await {
            Ok(signal) => *signal,
            // The sender lives as long as this watch.
            Err(_) => Signal::default(),
        }
    }

    /// Waits until the payment is final.
    pub async fn end(&mut self) {
        let _ = self.signals.wait_for(|signal| signal.is_final).await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let watches = self.watches.clone();
        let mut watched = watches.lock();
        // Ours is given up under the lock, so that of two that end at once the second sees that nobody is left.
        self.signals = watch::channel(Signal::default()).1;
        if watched.get(&self.payment_id).is_some_and(|sender| sender.receiver_count() == 0) {
            watched.remove(&self.payment_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn versions_only_go_up_and_watches_end() {
        let watches = Watches::default();
        let id = PaymentId::new();
        let mut first = watches.begin(id);
        let second = watches.begin(id);
        watches.tell(&[(id, Signal { version: 3, is_final: false })]);
        watches.tell(&[(id, Signal { version: 2, is_final: false })]);
        assert_eq!(first.after(1).await.version, 3);
        watches.tell(&[(id, Signal { version: 4, is_final: true })]);
        first.end().await;
        drop(first);
        assert_eq!(watches.lock().len(), 1);
        drop(second);
        assert_eq!(watches.lock().len(), 0);
    }
}
