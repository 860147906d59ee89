//! `florin.balance.v1.BalanceService`.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use chrono::{DateTime, Utc};
use florin::account::{Account, AccountType};
use florin::auth::Call;
use florin::error::{Error, Reason, Violations};
use florin::id::JournalEntryId;
use florin::money::{Currency, Money};
use florin::ops::read_failed;
use florin::proto::balance::v1 as proto;
use florin::proto::balance::v1::balance_service_server::BalanceService;
use florin::wire as platform;
use tonic::{Request, Response, Status};

use crate::balance::{AsOf, Owned, Totals};
use crate::cached::Cached;
use crate::error::{entry_not_applied, version_not_reached};
use crate::store::Store;
use crate::wire;

/// How long a reader waits for what it has written.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks meanwhile.
const PERIOD: Duration = Duration::from_millis(20);
/// Accounts in one call at most.
const MAX_ACCOUNTS: usize = 100;

/// Answers balances.
#[derive(Debug, Clone)]
pub struct Balances {
    /// The database.
    pub store: Store,
    /// Its cache.
    pub cached: Cached,
}

impl Balances {
    /// Balances in the order asked: from the cache where that is allowed, else from the table, which is then cached.
    async fn read(&self, accounts: &[Owned], strong: bool) -> Result<Vec<AsOf>, Error> {
        let mut found: Vec<Option<AsOf>> =
            if strong { vec![None; accounts.len()] } else { self.cached.get(accounts).await };
        let missing: Vec<Owned> = accounts
            .iter()
            .zip(&found)
            .filter(|(_, found)| found.is_none())
            .map(|(account, _)| account.clone())
            .collect();
        if !missing.is_empty() {
            let before = self.now().await?;
            let read = self.store.totals(&missing).await.map_err(read_failed)?;
            self.cached.put(&read).await;
            let read: HashMap<Owned, AsOf> = read.into_iter().collect();
            // An account without postings has a balance of zero.
            let nothing = AsOf { totals: Totals::default(), at: before };
            for (account, place) in accounts.iter().zip(&mut found).filter(|(_, place)| place.is_none()) {
                *place = Some(read.get(account).copied().unwrap_or(nothing));
            }
        }
        found
            .into_iter()
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Error::internal("a balance was neither cached nor read"))
    }

    async fn now(&self) -> Result<DateTime<Utc>, Error> {
        self.store.now().await.map_err(read_failed)
    }

    /// Waits until an entry is in the balances.
    async fn await_entry(&self, id: JournalEntryId) -> Result<(), Error> {
        let patience = tokio::time::Instant::now() + PATIENCE;
        loop {
            if !self.store.applied(&[id.uuid()]).await.map_err(read_failed)?.is_empty() {
                return Ok(());
            }
            if tokio::time::Instant::now() >= patience {
                return Err(entry_not_applied(id));
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Reads until the balance has at least this version. The cache may be behind: only the first look trusts it.
    async fn read_version(&self, account: &Owned, min_version: i64, strong: bool) -> Result<AsOf, Error> {
        let patience = tokio::time::Instant::now() + PATIENCE;
        let mut strong = strong;
        loop {
            let found = self.read(std::slice::from_ref(account), strong).await?;
            let version = match found.first() {
                Some(as_of) if as_of.totals.version >= min_version => return Ok(*as_of),
                Some(as_of) => as_of.totals.version,
                None => 0,
            };
            if strong && tokio::time::Instant::now() >= patience {
                return Err(version_not_reached(min_version, version));
            }
            if strong {
                tokio::time::sleep(PERIOD).await;
            }
            strong = true;
        }
    }
}

#[tonic::async_trait]
impl BalanceService for Balances {
    async fn get_balance(
        &self,
        request: Request<proto::GetBalanceRequest>,
    ) -> Result<Response<proto::Balance>, Status> {
        let call = Call::current()?;
        let proto::GetBalanceRequest { account_code, min_version, after_journal_entry_id, strong } =
            request.into_inner();
        let mut violations = Violations::default();
        let account = violations.take(platform::account("account_code", &account_code));
        let after = violations
            .take(platform::filter_id::<JournalEntryId>("after_journal_entry_id", &after_journal_entry_id))
            .flatten();
        violations.finish()?;
        let Some(account) = account else {
            return Err(Error::internal("an account was neither taken nor refused").into());
        };
        if let Some(id) = after {
            self.await_entry(id).await?;
        }
        // After an entry only the table will do: the cache may be a moment behind it.
        let as_of =
            self.read_version(&(call.merchant, account.clone()), min_version, strong || after.is_some()).await?;
        Ok(Response::new(wire::balance(&account, &as_of)?))
    }

    async fn batch_get_balances(
        &self,
        request: Request<proto::BatchGetBalancesRequest>,
    ) -> Result<Response<proto::BatchGetBalancesResponse>, Status> {
        let call = Call::current()?;
        let proto::BatchGetBalancesRequest { account_codes, strong } = request.into_inner();
        let mut violations = Violations::default();
        match account_codes.len() {
            0 => violations.add("account_codes", Reason::FieldRequired, "needs at least one"),
            1..=MAX_ACCOUNTS => {}
            _ => violations.add("account_codes", Reason::TextTooLong, format!("must be at most {MAX_ACCOUNTS}")),
        }
        let accounts: Vec<Owned> = account_codes
            .iter()
            .enumerate()
            .filter_map(|(index, code)| violations.take(platform::account(&format!("account_codes[{index}]"), code)))
            .map(|account| (call.merchant.clone(), account))
            .collect();
        violations.finish()?;
        let found = self.read(&accounts, strong).await?;
        let balances = accounts.iter().zip(&found).map(|((_, account), as_of)| wire::balance(account, as_of));
        Ok(Response::new(proto::BatchGetBalancesResponse { balances: balances.collect::<Result<_, Error>>()? }))
    }

    async fn list_seller_balances(
        &self,
        request: Request<proto::ListSellerBalancesRequest>,
    ) -> Result<Response<proto::ListSellerBalancesResponse>, Status> {
        let call = Call::current()?;
        let proto::ListSellerBalancesRequest { seller_id, after_journal_entry_id } = request.into_inner();
        let mut violations = Violations::default();
        let seller = violations.take(platform::caller_id("seller_id", &seller_id)).unwrap_or_default();
        let after = violations
            .take(platform::filter_id::<JournalEntryId>("after_journal_entry_id", &after_journal_entry_id))
            .flatten();
        violations.finish()?;
        if let Some(id) = after {
            self.await_entry(id).await?;
        }
        let as_of_time = self.now().await?;
        let found = self
            .store
            .of_entity(&call.merchant, &seller, &SELLER_ACCOUNTS.map(AccountType::as_str))
            .await
            .map_err(read_failed)?;
        let balances = by_currency(&found)?;
        Ok(Response::new(proto::ListSellerBalancesResponse {
            balances,
            as_of_time: Some(platform::timestamp(as_of_time)),
        }))
    }
}

/// The accounts that make up what a seller has.
const SELLER_ACCOUNTS: [AccountType; 4] =
    [AccountType::SellerPending, AccountType::SellerPayable, AccountType::SellerReserve, AccountType::PayoutInTransit];

fn by_currency(found: &[(Owned, AsOf)]) -> Result<Vec<proto::SellerBalance>, Error> {
    let mut currencies: BTreeMap<Currency, Vec<(&Account, Totals)>> = BTreeMap::new();
    for ((_, account), as_of) in found {
        currencies.entry(account.currency).or_default().push((account, as_of.totals));
    }
    let seller_balance = |(currency, accounts): (Currency, Vec<(&Account, Totals)>)| {
        let of = |wanted: AccountType| {
            let totals = accounts.iter().find(|(account, _)| account.account_type == wanted).map(|(_, totals)| *totals);
            let totals = totals.unwrap_or_default();
            let balance = wanted.balance(totals.debits, totals.credits);
            let balance = balance.ok_or_else(|| Error::internal("a seller's balance does not fit 64 bits"))?;
            Ok::<_, Error>(Some(platform::money(Money::new(currency, balance))))
        };
        Ok(proto::SellerBalance {
            currency_code: currency.to_string(),
            pending: of(AccountType::SellerPending)?,
            available: of(AccountType::SellerPayable)?,
            reserved: of(AccountType::SellerReserve)?,
            in_transit: of(AccountType::PayoutInTransit)?,
            version: accounts.iter().map(|(_, totals)| totals.version).sum(),
        })
    };
    currencies.into_iter().map(seller_balance).collect()
}
