//! The alarm clock: Redis holds when charges are due, and wakes whoever may claim them. It is a hint: the truth stands
//! in Postgres, and a flushed Redis costs at most a sweeper's period.

use std::time::Duration;

use florin::cache::Cache;
use florin::sweeper::Hint;
use redis::Script;
use tokio_util::sync::CancellationToken;

/// The sorted set: charge ids by due time in milliseconds.
const KEY: &str = "florin:psp-worker:alarm";
/// Between two looks at the clock: a tenth of the shortest retry delay in use.
const PERIOD: Duration = Duration::from_millis(20);
/// Between two looks while Redis does not answer.
const AFTER_TROUBLE: Duration = Duration::from_millis(500);
/// Takes what is due by Redis' own clock, and counts it.
const TAKE_DUE: &str = r"
local now = redis.call('TIME')
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now[1] * 1000 + math.floor(now[2] / 1000), 'LIMIT', 0, 1000)
if #due > 0 then redis.call('ZREM', KEYS[1], unpack(due)) end
return #due";

/// The alarm clock.
#[derive(Clone, Debug)]
pub struct Alarm {
    cache: Cache,
}

impl Alarm {
    /// An alarm clock in this Redis.
    #[must_use]
    pub fn new(cache: Cache) -> Self {
        Self { cache }
    }

    /// Sets alarms: due times in milliseconds since 1970 and charge ids. Best effort.
    pub async fn set(&self, due: &[(i64, String)]) {
        if due.is_empty() {
            return;
        }
        if let Err(error) = self.cache.schedule(KEY, due).await {
            tracing::debug!(%error, "no alarm was set; the sweeper will find what is due");
        }
    }

    /// Gives hints when something is due, until `stop`.
    pub async fn run(self, hints: Vec<Hint>, stop: CancellationToken) {
        let take = Script::new(TAKE_DUE);
        while !stop.is_cancelled() {
            let pause = match self.cache.run::<i64>(&take, &[KEY.to_owned()], &[]).await {
                Ok(0) => PERIOD,
                Ok(due) => {
                    metrics::histogram!("florin_alarm_batch").record(i32::try_from(due).map_or(f64::MAX, f64::from));
                    hints.iter().for_each(Hint::give);
                    PERIOD
                }
                Err(error) => {
                    tracing::debug!(%error, "the alarm clock does not answer");
                    AFTER_TROUBLE
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}
