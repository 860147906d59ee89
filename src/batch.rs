//! Group commit: what has gathered while the last commit ran forms the next batch. There is no timer, so a lone item
//! pays nothing.
//!
//! A caller only enqueues and awaits its own answer. The work runs in tasks that nobody cancels, so that a caller who
//! goes away leaves no transaction open (guarantees, rule 11).

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;

use crate::error::{Error, Reason};

/// Batches under way at once: while one commits, the next is prepared.
const WRITERS: usize = 2;

/// What a batcher does with its items.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Items in one batch at most.
    pub batch: usize,
    /// Items that may wait; more are refused as overload.
    pub queue: usize,
}

struct Item<T, R> {
    value: T,
    deadline: Option<Instant>,
    answer: oneshot::Sender<Result<R, Error>>,
}

/// A handle to hand in items.
#[derive(Debug)]
pub struct Batcher<T, R> {
    queue: mpsc::Sender<Item<T, R>>,
}

impl<T, R> Clone for Batcher<T, R> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone() }
    }
}

impl<T: Send + 'static, R: Send + 'static> Batcher<T, R> {
    /// Starts the writers. `process` answers one result for each item, in their order. The writers end when the last
    /// handle is dropped and the queue is empty.
    pub fn start<F, Fut>(limits: Limits, process: F) -> Self
    where
        F: Fn(Vec<T>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Vec<Result<R, Error>>> + Send + 'static,
    {
        let (queue, receiver) = mpsc::channel(limits.queue);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..WRITERS {
            tokio::spawn(write(Arc::clone(&receiver), limits.batch, process.clone()));
        }
        Self { queue }
    }

    /// Hands in an item and awaits its own answer. An item whose deadline has passed is dropped before its batch.
    ///
    /// # Errors
    /// The queue is full, the deadline passed, the process stops, or the batch answered an error for this item.
    pub async fn submit(&self, value: T, deadline: Option<Instant>) -> Result<R, Error> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Item { value, deadline, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::new(Reason::Overloaded, "the queue is full; retry"),
            mpsc::error::TrySendError::Closed(_) => stopping(),
        })?;
        answered.await.unwrap_or_else(|_| Err(stopping()))
    }
}

fn stopping() -> Error {
    Error::new(Reason::ShuttingDown, "the service is stopping; another replica will answer")
}

async fn write<T, R, F, Fut>(queue: Arc<Mutex<mpsc::Receiver<Item<T, R>>>>, limit: usize, process: F)
where
    T: Send + 'static,
    R: Send + 'static,
    F: Fn(Vec<T>) -> Fut,
    Fut: Future<Output = Vec<Result<R, Error>>> + Send + 'static,
{
    loop {
        let mut gathered = Vec::new();
        if queue.lock().await.recv_many(&mut gathered, limit).await == 0 {
            return;
        }
        let now = Instant::now();
        let mut values = Vec::with_capacity(gathered.len());
        let mut answers = Vec::with_capacity(gathered.len());
        for item in gathered {
            if item.deadline.is_some_and(|deadline| deadline <= now) {
                let late = Error::new(Reason::DeadlineExceeded, "the deadline passed before the work was begun");
                let _ = item.answer.send(Err(late));
            } else if !item.answer.is_closed() {
                values.push(item.value);
                answers.push(item.answer);
            }
        }
        if values.is_empty() {
            continue;
        }
        metrics::histogram!("florin_batch_items").record(u32::try_from(values.len()).map_or(f64::MAX, f64::from));
        let count = values.len();
        // A task of its own, so that a panic costs this batch and not the writer.
        let results = tokio::spawn(process(values))
            .await
            .unwrap_or_else(|panic| (0..count).map(|_| Err(Error::internal(&panic))).collect());
        debug_assert_eq!(results.len(), count);
        for (answer, result) in answers.into_iter().zip(results) {
            let _ = answer.send(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMITS: Limits = Limits { batch: 100, queue: 1000 };

    #[tokio::test]
    async fn what_gathers_while_a_batch_runs_is_one_batch() {
        let (gate, opened) = tokio::sync::watch::channel(false);
        let batcher = Batcher::start(LIMITS, move |items: Vec<usize>| {
            let mut opened = opened.clone();
            async move {
                let _ = opened.wait_for(|open| *open).await;
                let size = items.len();
                items.into_iter().map(|item| Ok((item, size))).collect()
            }
        });
        let calls: Vec<_> = (0..50)
            .map(|item| {
                let batcher = batcher.clone();
                tokio::spawn(async move { batcher.submit(item, None).await.unwrap() })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(20)).await;
        gate.send_replace(true);
        let mut largest = 0;
        for (item, call) in calls.into_iter().enumerate() {
            let (answered, size) = call.await.unwrap();
            assert_eq!(answered, item, "each caller gets its own answer");
            largest = largest.max(size);
        }
        assert!(largest > 1);
    }

    #[tokio::test]
    async fn late_items_are_dropped_and_panics_answered() {
        let batcher = Batcher::start(LIMITS, |items: Vec<bool>| async move {
            assert!(!items[0], "planned");
            items.into_iter().map(Ok).collect()
        });
        let late = batcher.submit(false, Some(Instant::now())).await.unwrap_err();
        assert_eq!(late.reason, Reason::DeadlineExceeded);
        assert_eq!(batcher.submit(true, None).await.unwrap_err().reason, Reason::Internal);
        assert!(!batcher.submit(false, None).await.unwrap(), "the writer lives on");
    }
}
