//! Where the stack is.

use std::collections::BTreeMap;
use std::path::PathBuf;

use florin::proto::balance::v1::balance_service_client::BalanceServiceClient;
use florin::proto::ledger::v1::ledger_service_client::LedgerServiceClient;
use florin::proto::ops::v1::ops_service_client::OpsServiceClient;
use florin::proto::payment::v1::payment_service_client::PaymentServiceClient;
use florin::proto::psp::v1::psp_service_client::PspServiceClient;
use sqlx::PgPool;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::Result;

/// Answers may be large: a page of 500 payments of 100 lines.
const MAX_ANSWER: usize = 64 << 20;

/// The services with the variables that name them.
pub const SERVICES: [(&str, &str); 4] = [
    ("payment-api", "FLORIN_PAYMENT_API"),
    ("psp-worker", "FLORIN_PSP_WORKER"),
    ("ledger-svc", "FLORIN_LEDGER_SVC"),
    ("balance-svc", "FLORIN_BALANCE_SVC"),
];

/// The addresses of a stack.
#[derive(Debug, Clone)]
pub struct Connection {
    addresses: BTreeMap<String, String>,
}

impl Connection {
    /// The stack of the environment, else of `.dev/stack.env` in this folder or above.
    ///
    /// # Errors
    /// There is neither.
    pub fn find() -> Result<Self> {
        let named: BTreeMap<String, String> =
            std::env::vars().filter(|(name, _)| name.starts_with("FLORIN_")).collect();
        if named.contains_key("FLORIN_PAYMENT_API") {
            return Ok(Self::of(named));
        }
        let file =
            stack_file().ok_or("no stack found: start one with make up, or set FLORIN_PAYMENT_API and the others")?;
        let text = std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        Ok(Self::of(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
    }

    /// The stack at these addresses.
    #[must_use]
    pub fn of(addresses: BTreeMap<String, String>) -> Self {
        Self { addresses }
    }

    /// An address by the variable that names it.
    ///
    /// # Errors
    /// It is not set.
    pub fn address(&self, variable: &str) -> Result<&str> {
        self.addresses.get(variable).map(String::as_str).ok_or_else(|| format!("{variable} is not set"))
    }

    /// A channel to a service; it connects when it is used.
    ///
    /// # Errors
    /// Its address is not set or malformed.
    pub fn channel(&self, variable: &str) -> Result<Channel> {
        let address = self.address(variable)?.to_owned();
        let endpoint =
            Endpoint::from_shared(address.clone()).map_err(|error| format!("{variable}={address}: {error}"))?;
        Ok(endpoint.connect_lazy())
    }

    /// payment-api.
    ///
    /// # Errors
    /// Its address is not set or malformed.
    pub fn payments(&self) -> Result<PaymentServiceClient<Channel>> {
        Ok(PaymentServiceClient::new(self.channel("FLORIN_PAYMENT_API")?).max_decoding_message_size(MAX_ANSWER))
    }

    /// psp-worker.
    ///
    /// # Errors
    /// Its address is not set or malformed.
    pub fn charges(&self) -> Result<PspServiceClient<Channel>> {
        Ok(PspServiceClient::new(self.channel("FLORIN_PSP_WORKER")?))
    }

    /// ledger-svc.
    ///
    /// # Errors
    /// Its address is not set or malformed.
    pub fn ledger(&self) -> Result<LedgerServiceClient<Channel>> {
        Ok(LedgerServiceClient::new(self.channel("FLORIN_LEDGER_SVC")?).max_decoding_message_size(MAX_ANSWER))
    }

    /// balance-svc.
    ///
    /// # Errors
    /// Its address is not set or malformed.
    pub fn balances(&self) -> Result<BalanceServiceClient<Channel>> {
        Ok(BalanceServiceClient::new(self.channel("FLORIN_BALANCE_SVC")?))
    }

    /// The operators' service of a service.
    ///
    /// # Errors
    /// The service is unknown, or its address is not set or malformed.
    pub fn ops(&self, service: &str) -> Result<OpsServiceClient<Channel>> {
        let known = SERVICES.iter().find(|(name, _)| *name == service);
        let (_, variable) = known
            .ok_or_else(|| format!("{service} is no service: payment-api, psp-worker, ledger-svc or balance-svc"))?;
        Ok(OpsServiceClient::new(self.channel(variable)?).max_decoding_message_size(MAX_ANSWER))
    }

    /// The database of a service, for the auditor.
    ///
    /// # Errors
    /// Its URL is not set or malformed.
    pub fn database(&self, variable: &str) -> Result<PgPool> {
        let name = format!("{variable}_DATABASE");
        florin::pg::pool(self.address(&name)?, "florin", 2).map_err(|error| format!("{name}: {error}"))
    }
}

fn stack_file() -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    here.ancestors().map(|folder| folder.join(".dev/stack.env")).find(|file| file.is_file())
}

/// What a service refused, for people: every mistake with its field.
#[must_use]
pub fn refused(status: Status) -> String {
    let Some(error) = florin::error::from_status(&status) else {
        return format!("{}: {}", status.code(), status.message());
    };
    let reason = florin::error::reason_name(error.reason);
    if error.violations.is_empty() {
        return format!("{reason}: {}", error.message);
    }
    let lines = error
        .violations
        .iter()
        .map(|v| format!("\n  {}: {} ({})", v.field, v.description, florin::error::reason_name(v.reason)));
    format!("{reason}{}", lines.collect::<String>())
}
