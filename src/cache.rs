//! Redis: a cache and an alarm clock. Every answer of it is optional; losing it costs time, never data.

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{AsyncCommands as _, RedisResult, Script};

/// How long an answer may take before the caller goes on without it.
const TIMEOUT: Duration = Duration::from_millis(100);

/// A connection that mends itself.
#[derive(Clone)]
pub struct Cache {
    connection: ConnectionManager,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cache")
    }
}

impl Cache {
    /// A cache at this URL. Connects when it is used, so that a service starts without it.
    ///
    /// # Errors
    /// The URL is malformed.
    pub fn new(url: &str) -> RedisResult<Self> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_response_timeout(Some(TIMEOUT))
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_millis(500));
        let client = redis::Client::open(url)?;
        Ok(Self { connection: ConnectionManager::new_lazy_with_config(client, config)? })
    }

    /// Asks whether Redis answers.
    ///
    /// # Errors
    /// It does not; the sentence says why.
    pub async fn ping(&self) -> Result<(), String> {
        let mut connection = self.connection.clone();
        redis::cmd("PING").query_async::<String>(&mut connection).await.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Runs a script.
    ///
    /// # Errors
    /// Redis does not answer in time.
    pub async fn run<T: redis::FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        arguments: &[String],
    ) -> RedisResult<T> {
        let mut connection = self.connection.clone();
        let mut call = script.prepare_invoke();
        for key in keys {
            call.key(key);
        }
        for argument in arguments {
            call.arg(argument);
        }
        call.invoke_async(&mut connection).await
    }

    /// The values of these keys, in their order.
    ///
    /// # Errors
    /// Redis does not answer in time.
    pub async fn get_many(&self, keys: &[String]) -> RedisResult<Vec<Option<String>>> {
        let mut connection = self.connection.clone();
        connection.mget(keys).await
    }

    /// Adds members with their scores to a sorted set.
    ///
    /// # Errors
    /// Redis does not answer in time.
    pub async fn schedule(&self, key: &str, members: &[(i64, String)]) -> RedisResult<()> {
        let mut connection = self.connection.clone();
        connection.zadd_multiple(key, members).await
    }
}
