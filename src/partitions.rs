//! Keeps the partitions of outbox and inbox made ahead. They are not dropped yet: only what every consumer has
//! confirmed may be, and the reconciler that knows is to come.

use std::time::Duration;

use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::pg;
use crate::sweeper::{self, Hint, Round};

/// Partitions reach two days ahead; an hour between looks leaves ample time for trouble.
const PERIOD: Duration = Duration::from_secs(3600);

/// Makes partitions until `stop`, as the tables' owner.
pub async fn keep(owner: PgPool, stop: CancellationToken) {
    sweeper::run("partition keeper", PERIOD, Hint::default(), stop, || async {
        pg::ensure_partitions(&owner).await.map(|()| Round::Done)
    })
    .await;
}
