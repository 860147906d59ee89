//! The cached copy of balances in Redis: written after each commit, flushed at any time without harm.

use chrono::DateTime;
use florin::cache::Cache;
use redis::Script;

use crate::balance::{AsOf, Owned, Totals};
use crate::store::Store;

/// How long a cached balance lives at most, in milliseconds. Absolute: a read does not prolong it.
const EXPIRY_MILLIS: u32 = 30_000;
/// Writes a balance unless a newer version is there.
const WRITE_IF_NEWER: &str = r"
for i, key in ipairs(KEYS) do
  local there = redis.call('GET', key)
  local version = there and tonumber(string.match(there, '^%d+')) or -1
  local value = ARGV[i + 1]
  if tonumber(string.match(value, '^%d+')) >= version then redis.call('SET', key, value, 'PX', ARGV[1]) end
end
return 0";

/// The cache of balances: written after each commit, flushed at any time without harm.
#[derive(Clone, Debug)]
pub struct Cached {
    cache: Cache,
    store: Store,
}

impl Cached {
    /// A cache in this Redis, in front of this store.
    #[must_use]
    pub fn new(cache: Cache, store: Store) -> Self {
        Self { cache, store }
    }

    /// Cached balances, in the order asked. Where Redis does not answer, none are.
    pub async fn get(&self, accounts: &[Owned]) -> Vec<Option<AsOf>> {
        let keys: Vec<String> = accounts.iter().map(key).collect();
        match self.cache.get_many(&keys).await {
            Ok(values) => values.into_iter().map(|value| value.as_deref().and_then(parse)).collect(),
            Err(error) => {
                tracing::debug!(%error, "the cache does not answer");
                vec![None; accounts.len()]
            }
        }
    }

    /// Keeps balances, unless newer ones are there. Best effort.
    pub async fn put(&self, balances: &[(Owned, AsOf)]) {
        if balances.is_empty() {
            return;
        }
        let keys: Vec<String> = balances.iter().map(|(account, _)| key(account)).collect();
        let mut arguments = vec![EXPIRY_MILLIS.to_string()];
        arguments.extend(balances.iter().map(|(_, as_of)| render(as_of)));
        if let Err(error) = self.cache.run::<i64>(&Script::new(WRITE_IF_NEWER), &keys, &arguments).await {
            tracing::debug!(%error, "balances were not cached");
        }
    }

    /// Reads accounts from the table and keeps them: after a commit, in the background.
    pub async fn refresh(&self, accounts: Vec<Owned>) {
        match self.store.totals(&accounts).await {
            Ok(found) => self.put(&found).await,
            Err(error) => tracing::debug!(%error, "balances were not read for the cache"),
        }
    }
}

fn key((merchant, account): &Owned) -> String {
    format!("florin:balance:{merchant}:{account}")
}

/// `version|debits|credits|microseconds since 1970`: the version first, where the script reads it.
fn render(as_of: &AsOf) -> String {
    let Totals { debits, credits, version } = as_of.totals;
    format!("{version}|{debits}|{credits}|{}", as_of.at.timestamp_micros())
}

fn parse(text: &str) -> Option<AsOf> {
    let numbers: Vec<i64> = text.split('|').map(|number| number.parse().ok()).collect::<Option<_>>()?;
    let [version, debits, credits, micros] = numbers.try_into().ok()?;
    Some(AsOf { totals: Totals { debits, credits, version }, at: DateTime::from_timestamp_micros(micros)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cached_is_read_as_it_was_written() {
        let as_of = AsOf {
            totals: Totals { debits: 5, credits: 7, version: 3 },
            at: DateTime::from_timestamp_micros(1_234_567).unwrap(),
        };
        assert_eq!(parse(&render(&as_of)), Some(as_of));
        for wrong in ["", "1|2|3", "1|2|3|4|5", "a|2|3|4"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
