//! The rebuild: folds the whole journal again and proves that cache = table = fold; with `--apply` it replaces the
//! table by the fold. It reads the journal through ledger-svc, as anybody would.

use std::collections::BTreeMap;
use std::time::Duration;

use florin::cache::Cache;
use florin::host::Fatal;
use florin::pg;
use florin::proto::ledger::v1::ListJournalEntriesRequest;
use florin::proto::ledger::v1::ledger_service_client::LedgerServiceClient;
use uuid::Uuid;

use crate::balance::{Owned, Totals, fold};
use crate::cached::Cached;
use crate::config::Config;
use crate::store::{EntryOf, Store};
use crate::{SERVICE, wire};

/// Entries read in one call.
const PAGE: i32 = 500;
/// How often the journal is read again because an entry was applied meanwhile.
const REPLACE_TRIES: u32 = 20;
/// How long balances may take to catch up with the journal.
const PATIENCE: Duration = Duration::from_secs(15);

/// Proves, or replaces with `apply`, and prints what it found.
///
/// # Errors
/// A part does not answer, or the balances are not the fold of the journal.
pub async fn run(config: &Config, apply: bool) -> Result<(), Fatal> {
    let owner = config.common.database_owner_url.as_ref().filter(|_| apply);
    if apply && owner.is_none() {
        return Err("setting FLORIN_DATABASE_OWNER_URL: is required to replace balances".into());
    }
    let store = Store::new(pg::pool(owner.unwrap_or(&config.common.database_url), SERVICE, 2)?);
    let cached = Cached::new(Cache::new(&config.redis_url)?, store.clone());
    if apply {
        replace(config, &store).await?;
    }
    let patience = tokio::time::Instant::now() + PATIENCE;
    loop {
        let differences = compare(config, &store, &cached).await?;
        if differences.is_empty() {
            return Ok(());
        }
        // Entries may be on their way; only what stays different is wrong.
        if tokio::time::Instant::now() >= patience {
            for difference in &differences {
                eprintln!("{difference}");
            }
            return Err(format!("{} differences between cache, table and fold", differences.len()).into());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Replaces the table. Under load an entry may be applied after the journal was read: then it is read again.
async fn replace(config: &Config, store: &Store) -> Result<(), Fatal> {
    for _ in 0..REPLACE_TRIES {
        let journal = read_journal(config).await?;
        if store.replace(&config.common.merchant, &journal).await? {
            println!("replaced all balances by the fold of {} journal entries", journal.len());
            return Ok(());
        }
    }
    Err("entries are applied faster than the journal can be read: try again under less load".into())
}

async fn read_journal(config: &Config) -> Result<Vec<EntryOf>, Fatal> {
    let mut ledger = LedgerServiceClient::connect(config.ledger_url.clone())
        .await
        .map_err(|error| format!("ledger-svc at {}: {error}", config.ledger_url))?
        .max_decoding_message_size(16 << 20);
    let mut entries = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListJournalEntriesRequest { page_size: PAGE, page_token, ..Default::default() };
        let page = ledger.list_journal_entries(request).await?.into_inner();
        for entry in &page.journal_entries {
            entries.push(wire::entry_of(&config.common.merchant, entry)?);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(entries);
        }
    }
}

/// What differs between the fold of the journal, the table and the cache.
async fn compare(config: &Config, store: &Store, cached: &Cached) -> Result<Vec<String>, Fatal> {
    let journal = read_journal(config).await?;
    let mut differences = Vec::new();
    let ids: Vec<Uuid> = journal.iter().map(|of| of.entry_id.uuid()).collect();
    let behind = ids.len() - store.applied(&ids).await?.len();
    if behind > 0 {
        differences.push(format!("{behind} journal entries are not in the balances"));
    }
    let folded = fold(journal.iter().flat_map(|of| &of.movements)).ok_or("the journal does not fit 64 bits")?;
    let mut expected: BTreeMap<String, Totals> = BTreeMap::new();
    for ((_, code, _), (_, totals)) in folded {
        let sum = expected.entry(code).or_default();
        sum.debits += totals.debits;
        sum.credits += totals.credits;
        sum.version += totals.version;
    }
    let table: Vec<(Owned, _)> =
        store.all().await?.into_iter().filter(|((merchant, _), _)| *merchant == config.common.merchant).collect();
    let accounts: Vec<Owned> = table.iter().map(|(account, _)| account.clone()).collect();
    let copies = cached.get(&accounts).await;
    for (((_, account), found), copy) in table.iter().zip(&copies) {
        let fold = expected.remove(&account.to_string()).unwrap_or_default();
        if fold != found.totals {
            differences.push(format!("{account}: the table holds {:?}, the fold is {fold:?}", found.totals));
        }
        // A copy of an older version is allowed to be old, not to be wrong.
        if let Some(copy) =
            copy.filter(|copy| copy.totals.version >= found.totals.version && copy.totals != found.totals)
        {
            differences.push(format!("{account}: the cache holds {:?}, the table {:?}", copy.totals, found.totals));
        }
    }
    differences.extend(expected.keys().map(|code| format!("{code}: the table holds nothing")));
    if differences.is_empty() {
        let hits = copies.iter().flatten().count();
        println!(
            "cache = table = fold: {} journal entries, {} accounts, {hits} of them cached",
            journal.len(),
            table.len()
        );
    }
    Ok(differences)
}
