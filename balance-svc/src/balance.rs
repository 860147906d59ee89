//! The domain: totals of an account, their fold, and their cached copy.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use florin::account::Account;
use florin::cache::Cache;
use redis::Script;

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

/// Totals of an account in minor units of its currency.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Sum of debits.
    pub debits: i64,
    /// Sum of credits.
    pub credits: i64,
    /// How many postings they hold.
    pub version: i64,
}

impl Totals {
    /// Adds one posting's side; `None` where it does not fit 64 bits.
    #[must_use]
    pub fn add(self, debit: i64, credit: i64) -> Option<Self> {
        Some(Self {
            debits: self.debits.checked_add(debit)?,
            credits: self.credits.checked_add(credit)?,
            version: self.version + 1,
        })
    }
}

/// An account of a merchant.
pub type Owned = (String, Account);

/// A movement of money between two accounts of a merchant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Movement {
    /// The merchant.
    pub merchant_id: String,
    /// What is debited.
    pub debit: Account,
    /// What is credited.
    pub credit: Account,
    /// Minor units; positive.
    pub amount: i64,
    /// The slot that it is folded into.
    pub slot: i16,
}

/// Totals by merchant, account code and slot.
pub type Folded = BTreeMap<(String, String, i16), (Account, Totals)>;

/// The totals that movements add up to, per account and slot; `None` where they do not fit 64 bits.
#[must_use]
pub fn fold<'a>(movements: impl IntoIterator<Item = &'a Movement>) -> Option<Folded> {
    let mut folded = Folded::new();
    for movement in movements {
        for (account, debit, credit) in [(&movement.debit, movement.amount, 0), (&movement.credit, 0, movement.amount)]
        {
            let key = (movement.merchant_id.clone(), account.to_string(), movement.slot);
            let (_, totals) = folded.entry(key).or_insert_with(|| (account.clone(), Totals::default()));
            *totals = totals.add(debit, credit)?;
        }
    }
    Some(folded)
}

/// Totals with the time that they were true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AsOf {
    /// The totals.
    pub totals: Totals,
    /// They hold every posting that was applied at this time.
    pub at: DateTime<Utc>,
}

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
    use florin::account::AccountType;
    use proptest::prelude::*;

    use super::*;

    fn movement(seller: u8, amount: i64, slot: i16) -> Movement {
        let currency = "EUR".parse().unwrap();
        Movement {
            merchant_id: "dev".into(),
            debit: Account::new(AccountType::PspReceivable, "main", currency),
            credit: Account::new(AccountType::SellerPending, format!("s{seller}"), currency),
            amount,
            slot,
        }
    }

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

    #[test]
    fn sums_that_do_not_fit_are_refused() {
        assert_eq!(fold([&movement(1, i64::MAX, 0), &movement(1, 1, 0)]), None);
    }

    proptest! {
        /// Batch = one by one, in any order; and debits equal credits whatever was folded.
        #[test]
        fn folding_does_not_depend_on_order(moves in proptest::collection::vec((0_u8..4, 1_i64..1000, 0_i16..3), 0..40)) {
            let movements: Vec<Movement> = moves.iter().map(|(seller, amount, slot)| movement(*seller, *amount, *slot)).collect();
            let folded = fold(&movements).unwrap();
            prop_assert_eq!(&folded, &fold(movements.iter().rev()).unwrap());
            let sum = |side: fn(&Totals) -> i64| folded.values().map(|(_, totals)| side(totals)).sum::<i64>();
            prop_assert_eq!(sum(|totals| totals.debits), sum(|totals| totals.credits));
            prop_assert_eq!(usize::try_from(sum(|totals| totals.version)).unwrap(), movements.len() * 2);
        }
    }
}
