//! The sweeper: nothing waits for ever. An order without news is overdue, and psp-worker is asked again.

use std::time::Duration;

use florin::sweeper::{self, Hint, Round};
use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(2);

/// Sweeps until `stop`.
pub async fn run(store: Store, stop: CancellationToken) {
    sweeper::run("sweeper", PERIOD, Hint::default(), stop, || async {
        store.ask_again().await.map(|more| if more { Round::More } else { Round::Done })
    })
    .await;
}
