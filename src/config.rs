//! Settings: environment variables with types. All mistakes are reported at once, and a process with a mistake does
//! not start (guarantees, rule 12).

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

/// A setting that was asked for: what `<service> settings` prints.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Name of the environment variable.
    pub name: &'static str,
    /// What it sets, with its unit.
    pub help: &'static str,
    /// Its default; `None` where it is required.
    pub default: Option<String>,
}

/// Reads settings and gathers their mistakes.
#[derive(Debug, Default)]
pub struct Env {
    values: BTreeMap<String, String>,
    settings: Vec<Setting>,
    mistakes: Vec<String>,
}

impl Env {
    /// The process's environment.
    #[must_use]
    pub fn process() -> Self {
        Self::of(std::env::vars())
    }

    /// These variables.
    pub fn of(values: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { values: values.into_iter().collect(), ..Self::default() }
    }

    /// A required setting. After a mistake it is the given stand-in, which is never used: [`Env::finish`] fails.
    pub fn required<T>(&mut self, name: &'static str, help: &'static str, stand_in: T) -> T
    where
        T: FromStr<Err: Display>,
    {
        self.settings.push(Setting { name, help, default: None });
        match self.values.get(name).filter(|value| !value.is_empty()) {
            Some(value) => match value.parse() {
                Ok(value) => return value,
                Err(error) => self.mistakes.push(format!("{name}: {error}")),
            },
            None => self.mistakes.push(format!("{name}: is required ({help})")),
        }
        stand_in
    }

    /// A setting with a default.
    pub fn or<T>(&mut self, name: &'static str, help: &'static str, default: T) -> T
    where
        T: FromStr<Err: Display> + Display,
    {
        self.settings.push(Setting { name, help, default: Some(default.to_string()) });
        self.parse(name).unwrap_or(default)
    }

    /// A setting that may be absent.
    pub fn optional<T>(&mut self, name: &'static str, help: &'static str) -> Option<T>
    where
        T: FromStr<Err: Display>,
    {
        self.settings.push(Setting { name, help, default: Some(String::new()) });
        self.parse(name)
    }

    /// A duration in milliseconds, at least `least`.
    pub fn millis(&mut self, name: &'static str, help: &'static str, default: u64, least: u64) -> Duration {
        Duration::from_millis(self.at_least(name, help, default, least))
    }

    /// A number of at least `least`.
    pub fn at_least<T>(&mut self, name: &'static str, help: &'static str, default: T, least: T) -> T
    where
        T: FromStr<Err: Display> + Display + PartialOrd,
    {
        let value = self.or(name, help, default);
        if value < least {
            self.mistakes.push(format!("{name}: must be at least {least}, is {value}"));
        }
        value
    }

    /// Notes a mistake that only shows in several settings together.
    pub fn check(&mut self, holds: bool, mistake: &str) {
        if !holds {
            self.mistakes.push(mistake.to_owned());
        }
    }

    fn parse<T: FromStr<Err: Display>>(&mut self, name: &'static str) -> Option<T> {
        let value = self.values.get(name).filter(|value| !value.is_empty())?;
        value.parse().map_err(|error| self.mistakes.push(format!("{name}: {error}"))).ok()
    }

    /// All settings that were asked for.
    #[must_use]
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// # Errors
    /// There were mistakes: all of them.
    pub fn finish(&self) -> Result<(), Vec<String>> {
        if self.mistakes.is_empty() { Ok(()) } else { Err(self.mistakes.clone()) }
    }
}

/// The settings that every service has.
#[derive(Debug, Clone)]
pub struct Common {
    /// Where gRPC is served.
    pub grpc_listen: SocketAddr,
    /// Where metrics and health are served over HTTP.
    pub ops_listen: SocketAddr,
    /// The service's database, as its own role.
    pub database_url: String,
    /// The service's database, as the role that owns its tables. With it the service migrates and keeps partitions.
    pub database_owner_url: Option<String>,
    /// Connections to the database.
    pub database_connections: u32,
    /// The NATS server.
    pub nats_url: String,
    /// Where traces are sent.
    pub otlp_endpoint: Option<String>,
    /// Log filter.
    pub log: String,
    /// The merchant that every caller is, until authorisation is configured.
    pub merchant: String,
    /// How long the service goes on serving after it said that it is not ready.
    pub drain_delay: Duration,
    /// How long calls and batches under way may take when the service stops.
    pub drain_timeout: Duration,
    /// Calls under way at once; more are refused.
    pub max_calls: usize,
}

impl Common {
    /// Reads them.
    pub fn read(env: &mut Env) -> Self {
        let common = Self::fields(env);
        let is_database = |url: &str| url.is_empty() || sqlx::postgres::PgConnectOptions::from_str(url).is_ok();
        env.check(is_database(&common.database_url), "FLORIN_DATABASE_URL: is no postgres:// URL");
        let owner = common.database_owner_url.as_deref().unwrap_or_default();
        env.check(is_database(owner), "FLORIN_DATABASE_OWNER_URL: is no postgres:// URL");
        let nats = &common.nats_url;
        let is_nats = nats.is_empty() || nats.starts_with("nats://") || nats.starts_with("tls://");
        env.check(is_nats, "FLORIN_NATS_URL: must begin with nats:// or tls://");
        common
    }

    fn fields(env: &mut Env) -> Self {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            grpc_listen: env.required("FLORIN_GRPC_LISTEN", "address and port of gRPC", nowhere),
            ops_listen: env.required("FLORIN_OPS_LISTEN", "address and port of metrics and health", nowhere),
            database_url: env.required("FLORIN_DATABASE_URL", "database, as the service's role", String::new()),
            database_owner_url: env
                .optional("FLORIN_DATABASE_OWNER_URL", "database, as the owner: migrates and keeps partitions"),
            database_connections: env.at_least("FLORIN_DATABASE_CONNECTIONS", "connections to the database", 10, 4),
            nats_url: env.required("FLORIN_NATS_URL", "NATS server, nats://host:port", String::new()),
            otlp_endpoint: env.optional("FLORIN_OTLP_ENDPOINT", "where traces go, http://host:4317; off when empty"),
            log: env.or("FLORIN_LOG", "log filter, as tracing's EnvFilter", "info".to_owned()),
            merchant: env.or("FLORIN_MERCHANT", "the development merchant", "dev".to_owned()),
            drain_delay: env.millis("FLORIN_DRAIN_DELAY_MS", "ms between not ready and refusing calls", 5_000, 0),
            drain_timeout: env.millis(
                "FLORIN_DRAIN_TIMEOUT_MS",
                "ms that work under way may take at the end",
                20_000,
                1,
            ),
            max_calls: env.at_least("FLORIN_MAX_CALLS", "calls under way at once", 4_096, 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let values = [("FLORIN_GRPC_LISTEN", "here"), ("FLORIN_DRAIN_TIMEOUT_MS", "0"), ("FLORIN_NATS_URL", "")];
        let mut env = Env::of(values.map(|(name, value)| (name.to_owned(), value.to_owned())));
        Common::read(&mut env);
        let mistakes = env.finish().unwrap_err();
        for name in [
            "FLORIN_GRPC_LISTEN",
            "FLORIN_OPS_LISTEN",
            "FLORIN_DATABASE_URL",
            "FLORIN_NATS_URL",
            "FLORIN_DRAIN_TIMEOUT_MS",
        ] {
            assert_eq!(mistakes.iter().filter(|mistake| mistake.starts_with(name)).count(), 1, "{name}: {mistakes:?}");
        }
        assert_eq!(mistakes.len(), 5);
    }
}
