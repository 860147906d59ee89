//! Postgres: the pool, transactions that no cancelled call can leave open, migrations, and what an error means.

use std::str::FromStr as _;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgPool, Postgres};

/// A transaction.
pub type Tx = sqlx::Transaction<'static, Postgres>;

/// How long a call waits for a free connection before it is answered that Postgres does not answer.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// The tables that every service's database has.
static PLATFORM: Migrator = sqlx::migrate!("./migrations");

/// What an error of Postgres means for the batch that met it. By SQLSTATE, never by the message's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Class 22 or 23: an item of the batch is wrong. Retry one by one; only the guilty one fails.
    Data,
    /// 40001 or 40P01: two transactions met. Retry the batch.
    Conflict,
    /// 55P03: a lock was not given in time.
    LockTimeout,
    /// The connection broke, or none was to be had. The outcome of a commit is unknown: retry under the same ids.
    Down,
    /// Anything else: a mistake of ours.
    Other,
}

/// What an error means.
#[must_use]
pub fn class(error: &sqlx::Error) -> Class {
    match error {
        sqlx::Error::Database(database) => match database.code().as_deref() {
            Some("40001" | "40P01") => Class::Conflict,
            Some("55P03") => Class::LockTimeout,
            // 57P0x: the server is stopping or starting; 08: connection; 53: out of resources; 57014: the statement's
            // time was up; 25P03: idle in transaction for too long.
            Some(code)
                if code.starts_with("57") || code.starts_with("08") || code.starts_with("53") || code == "25P03" =>
            {
                Class::Down
            }
            Some(code) if code.starts_with("22") || code.starts_with("23") => Class::Data,
            _ => Class::Other,
        },
        // A value that does not fit its column is wrong wherever it is noticed.
        sqlx::Error::Encode(_) => Class::Data,
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_) => Class::Down,
        _ => Class::Other,
    }
}

/// A pool that connects when it is used: a service starts before its database does.
///
/// # Errors
/// The URL is malformed.
pub fn pool(url: &str, name: &str, connections: u32) -> Result<PgPool, sqlx::Error> {
    let options = PgConnectOptions::from_str(url)?.application_name(name).options([
        // Bounds from reference tables of well-run systems; a batch takes milliseconds.
        ("statement_timeout", "5s"),
        ("lock_timeout", "3s"),
        ("idle_in_transaction_session_timeout", "10s"),
    ]);
    Ok(PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // A ping before each use would double the round trips; a broken connection shows at its first statement, and
        // every write is repeatable.
        .test_before_acquire(false)
        .max_lifetime(Duration::from_secs(30 * 60))
        .connect_lazy_with(options))
}

/// Opens a transaction. Call it from a task that nobody cancels, never from a call's handler: sqlx 0.9 leaves the
/// transaction open on its pooled connection when `begin` is dropped half way (sqlx #4393).
///
/// # Errors
/// Postgres does not answer.
#[allow(clippy::disallowed_methods, reason = "the one place that may")]
pub async fn begin(pool: &PgPool) -> Result<Tx, sqlx::Error> {
    pool.begin().await
}

/// Runs the platform's migrations, then the service's own, and makes the partitions that are needed.
///
/// # Errors
/// The database does not answer, or holds migrations that this binary does not know.
pub async fn migrate(owner: &PgPool, service: &Migrator) -> Result<(), sqlx::Error> {
    let mut platform = Migrator { migrations: PLATFORM.migrations.clone(), ..Migrator::DEFAULT };
    // Two sets of migrations in one database keep two books.
    platform.dangerous_set_table_name("_platform_migrations");
    platform.run(owner).await?;
    service.run(owner).await?;
    crate::pg::ensure_partitions(owner).await
}

/// Makes the partitions of outbox and inbox that are to come.
///
/// # Errors
/// The database does not answer, or the role does not own the tables.
pub async fn ensure_partitions(owner: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query!("select florin_ensure_partitions()").execute(owner).await?;
    Ok(())
}

/// Whether the schema is as new as this binary: for services that run without the owner's role.
///
/// # Errors
/// The database does not answer.
pub async fn schema_is_current(pool: &PgPool, service: &Migrator) -> Result<bool, sqlx::Error> {
    let newest = service.iter().map(|migration| migration.version).max().unwrap_or_default();
    let found =
        sqlx::query_scalar!(r#"select coalesce(max(version), 0) as "version!" from _sqlx_migrations where success"#);
    Ok(found.fetch_one(pool).await? >= newest)
}

/// The database holds what this version does not know: stop, never default (guarantees, rule 9).
pub fn undecodable(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}

/// Asks whether Postgres answers.
///
/// # Errors
/// It does not; the sentence says why.
pub async fn ping(pool: &PgPool) -> Result<(), String> {
    sqlx::query_scalar!(r#"select 1 as "one!""#).fetch_one(pool).await.map(|_| ()).map_err(|error| error.to_string())
}
