//! All SQL of balance-svc.
//!
//! Balances are changed once per account and slot per batch, in account order, so that replicas cannot deadlock.

use std::collections::{BTreeSet, HashSet};

use chrono::{DateTime, Utc};
use florin::account::{Account, AccountType};
use florin::id::JournalEntryId;
use florin::pg::{self, Tx};
use sqlx::PgPool;
use uuid::Uuid;

use crate::balance::{AsOf, Folded, Movement, Owned, Totals, fold};

/// An entry to fold.
#[derive(Debug, Clone)]
pub struct EntryOf {
    /// Its id.
    pub entry_id: JournalEntryId,
    /// Its movements.
    pub movements: Vec<Movement>,
}

/// The database.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
}

struct TotalsRow {
    merchant_id: String,
    account_type: String,
    entity: String,
    currency: String,
    debits: i64,
    credits: i64,
    version: i64,
    at: DateTime<Utc>,
}

impl TotalsRow {
    fn into_balance(self) -> Result<(Owned, AsOf), sqlx::Error> {
        let account_type: AccountType = self.account_type.parse().map_err(pg::undecodable)?;
        let account = Account::new(account_type, self.entity, self.currency.parse().map_err(pg::undecodable)?);
        let totals = Totals { debits: self.debits, credits: self.credits, version: self.version };
        Ok(((self.merchant_id, account), AsOf { totals, at: self.at }))
    }
}

impl Store {
    /// The store of this database.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Folds entries that are new. Answers the accounts that changed.
    ///
    /// # Errors
    /// Postgres refused, for example a sum that does not fit 64 bits.
    pub async fn apply(&self, tx: &mut Tx, entries: &[EntryOf]) -> Result<Vec<Owned>, sqlx::Error> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<Uuid> = entries.iter().map(|of| of.entry_id.uuid()).collect();
        let new: Vec<Uuid> = sqlx::query_scalar!(
            r#"
            insert into applied_entries (entry_id) select distinct entry_id from unnest($1::uuid[]) as new (entry_id)
            order by entry_id on conflict do nothing returning entry_id
            "#,
            &ids,
        )
        .fetch_all(&mut **tx)
        .await?;
        let mut new: HashSet<Uuid> = new.into_iter().collect();
        let movements = entries.iter().filter(|of| new.remove(&of.entry_id.uuid())).flat_map(|of| &of.movements);
        let rows = rows(fold(movements).ok_or_else(too_large)?);
        ensure_accounts(tx, &rows).await?;
        add_to_balances(tx, &rows).await?;
        let changed: BTreeSet<(String, String)> =
            rows.iter().map(|(merchant, account, ..)| (merchant.clone(), account.to_string())).collect();
        Ok(changed.into_iter().filter_map(|(merchant, code)| Some((merchant, code.parse().ok()?))).collect())
    }

    /// Balances of these accounts that have any, each with the time that it is true for.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn totals(&self, accounts: &[Owned]) -> Result<Vec<(Owned, AsOf)>, sqlx::Error> {
        totals(&mut *self.pool.acquire().await?, accounts).await
    }

    /// The same inside of a transaction.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn totals_in_tx(&self, tx: &mut Tx, accounts: &[Owned]) -> Result<Vec<(Owned, AsOf)>, sqlx::Error> {
        totals(tx, accounts).await
    }

    /// All balances of an entity of these account types.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn of_entity(
        &self,
        merchant: &str,
        entity: &str,
        types: &[&str],
    ) -> Result<Vec<(Owned, AsOf)>, sqlx::Error> {
        let rows = sqlx::query_as!(
            TotalsRow,
            r#"
            select a.merchant_id, a.type as account_type, a.entity, a.currency, sum(b.debits)::bigint as "debits!",
                   sum(b.credits)::bigint as "credits!", sum(b.version)::bigint as "version!",
                   statement_timestamp() as "at!"
            from balance_accounts a join balances b using (account_id)
            where a.merchant_id = $1 and a.entity = $2 and a.type = any($3)
            group by a.account_id
            "#,
            merchant,
            entity,
            types as _,
        );
        rows.fetch_all(&self.pool).await?.into_iter().map(TotalsRow::into_balance).collect()
    }

    /// Every balance.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn all(&self) -> Result<Vec<(Owned, AsOf)>, sqlx::Error> {
        let rows = sqlx::query_as!(
            TotalsRow,
            r#"
            select a.merchant_id, a.type as account_type, a.entity, a.currency, sum(b.debits)::bigint as "debits!",
                   sum(b.credits)::bigint as "credits!", sum(b.version)::bigint as "version!",
                   statement_timestamp() as "at!"
            from balance_accounts a join balances b using (account_id) group by a.account_id
            "#
        );
        rows.fetch_all(&self.pool).await?.into_iter().map(TotalsRow::into_balance).collect()
    }

    /// The database's time.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn now(&self) -> Result<DateTime<Utc>, sqlx::Error> {
        sqlx::query_scalar!(r#"select clock_timestamp() as "now!""#).fetch_one(&self.pool).await
    }

    /// Which of these entries are in the balances.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn applied(&self, entries: &[Uuid]) -> Result<HashSet<Uuid>, sqlx::Error> {
        let found = sqlx::query_scalar!("select entry_id from applied_entries where entry_id = any($1)", entries);
        Ok(found.fetch_all(&self.pool).await?.into_iter().collect())
    }

    /// Replaces all balances of the merchant by the fold of those of `entries` that were applied, as the tables' owner.
    /// Consumers wait meanwhile, so that an entry is in the fold or comes after it, and never both. `false`: an entry
    /// was applied that is not among `entries`; nothing is changed, read the journal again.
    ///
    /// # Errors
    /// Postgres refused, or there are balances of other merchants, whose journal was not read.
    pub async fn replace(&self, merchant: &str, entries: &[EntryOf]) -> Result<bool, sqlx::Error> {
        let mut tx = pg::begin(&self.pool).await?;
        sqlx::query!("lock table balances, applied_entries in exclusive mode").execute(&mut *tx).await?;
        let others = sqlx::query_scalar!(
            r#"select exists (select from balance_accounts where merchant_id <> $1) as "others!""#,
            merchant
        );
        if others.fetch_one(&mut *tx).await? {
            return Err(sqlx::Error::Protocol(
                "there are balances of other merchants too; nothing was replaced".into(),
            ));
        }
        let applied: Vec<Uuid> =
            sqlx::query_scalar!("select entry_id from applied_entries").fetch_all(&mut *tx).await?;
        let known: HashSet<Uuid> = entries.iter().map(|of| of.entry_id.uuid()).collect();
        if applied.iter().any(|entry| !known.contains(entry)) {
            tx.rollback().await?;
            return Ok(false);
        }
        let applied: HashSet<Uuid> = applied.into_iter().collect();
        let movements = entries.iter().filter(|of| applied.contains(&of.entry_id.uuid())).flat_map(|of| &of.movements);
        let rows = rows(fold(movements).ok_or_else(too_large)?);
        sqlx::query!("delete from balances").execute(&mut *tx).await?;
        ensure_accounts(&mut tx, &rows).await?;
        add_to_balances(&mut tx, &rows).await?;
        tx.commit().await?;
        Ok(true)
    }
}

/// A sum that does not fit its column: wrong data, so that the guilty entry is found and set aside.
fn too_large() -> sqlx::Error {
    sqlx::Error::Encode("a sum does not fit 64 bits".into())
}

fn rows(folded: Folded) -> Vec<Row> {
    folded.into_iter().map(|((merchant, _, slot), (account, totals))| (merchant, account, slot, totals)).collect()
}

async fn totals(connection: &mut sqlx::PgConnection, accounts: &[Owned]) -> Result<Vec<(Owned, AsOf)>, sqlx::Error> {
    let merchants: Vec<&str> = accounts.iter().map(|(merchant, _)| merchant.as_str()).collect();
    let types: Vec<&str> = accounts.iter().map(|(_, account)| account.account_type.as_str()).collect();
    let entities: Vec<&str> = accounts.iter().map(|(_, account)| account.entity.as_str()).collect();
    let currencies: Vec<&str> = accounts.iter().map(|(_, account)| account.currency.code()).collect();
    let rows = sqlx::query_as!(
        TotalsRow,
        r#"
        select a.merchant_id, a.type as account_type, a.entity, a.currency, sum(b.debits)::bigint as "debits!",
               sum(b.credits)::bigint as "credits!", sum(b.version)::bigint as "version!", statement_timestamp() as "at!"
        from unnest($1::text[], $2::text[], $3::text[], $4::text[]) as wanted (merchant_id, type, entity, currency)
        join balance_accounts a using (merchant_id, type, entity, currency) join balances b using (account_id)
        group by a.account_id
        "#,
        &merchants as _,
        &types as _,
        &entities as _,
        &currencies as _,
    );
    rows.fetch_all(connection).await?.into_iter().map(TotalsRow::into_balance).collect()
}

type Row = (String, Account, i16, Totals);

/// The columns that name the accounts of rows.
fn names(rows: &[Row]) -> [Vec<&str>; 4] {
    [
        rows.iter().map(|(merchant, ..)| merchant.as_str()).collect(),
        rows.iter().map(|(_, account, ..)| account.account_type.as_str()).collect(),
        rows.iter().map(|(_, account, ..)| account.entity.as_str()).collect(),
        rows.iter().map(|(_, account, ..)| account.currency.code()).collect(),
    ]
}

async fn ensure_accounts(tx: &mut Tx, rows: &[Row]) -> Result<(), sqlx::Error> {
    let [merchants, types, entities, currencies] = names(rows);
    sqlx::query!(
        r#"
        insert into balance_accounts (merchant_id, type, entity, currency)
        select distinct merchant_id, type, entity, currency
        from unnest($1::text[], $2::text[], $3::text[], $4::text[]) as new (merchant_id, type, entity, currency)
        where not exists (select from balance_accounts a where (a.merchant_id, a.type, a.entity, a.currency)
                                                     = (new.merchant_id, new.type, new.entity, new.currency))
        order by merchant_id, type, entity, currency
        on conflict do nothing
        "#,
        &merchants as _,
        &types as _,
        &entities as _,
        &currencies as _,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn add_to_balances(tx: &mut Tx, rows: &[Row]) -> Result<(), sqlx::Error> {
    let [merchants, types, entities, currencies] = names(rows);
    let slots: Vec<i16> = rows.iter().map(|(_, _, slot, _)| *slot).collect();
    let debits: Vec<i64> = rows.iter().map(|(.., totals)| totals.debits).collect();
    let credits: Vec<i64> = rows.iter().map(|(.., totals)| totals.credits).collect();
    let versions: Vec<i64> = rows.iter().map(|(.., totals)| totals.version).collect();
    let written = sqlx::query!(
        r#"
        insert into balances (account_id, slot, debits, credits, version)
        select account_id, slot, debits, credits, version
        from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::smallint[], $6::bigint[], $7::bigint[], $8::bigint[])
             as new (merchant_id, type, entity, currency, slot, debits, credits, version)
        join balance_accounts using (merchant_id, type, entity, currency)
        order by account_id, slot
        on conflict (account_id, slot) do update set
            debits = balances.debits + excluded.debits, credits = balances.credits + excluded.credits,
            version = balances.version + excluded.version, updated_at = clock_timestamp()
        "#,
        &merchants as _,
        &types as _,
        &entities as _,
        &currencies as _,
        &slots,
        &debits,
        &credits,
        &versions,
    )
    .execute(&mut **tx)
    .await?;
    if written.rows_affected() != rows.len() as u64 {
        return Err(sqlx::Error::Protocol("a balance was not written".into()));
    }
    Ok(())
}
