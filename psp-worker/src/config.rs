//! Settings of psp-worker.

use std::time::Duration;

use florin::backoff::{Backoff, InquirySchedule};
use florin::config::{Common, Env};

use crate::attempt::Rules;
use crate::store::Leases;

/// A call that does not begin this soon after its commit is left to the next owner.
pub const BEGIN_WITHIN: Duration = Duration::from_secs(1);
/// How long a lease outlives its call's deadline: time to write the result.
const LEASE_MARGIN: Duration = Duration::from_secs(5);

/// The settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Those that every service has.
    pub common: Common,
    /// Redis: the alarm clock.
    pub redis_url: String,
    /// The PSP's address.
    pub psp_url: String,
    /// The PSP's secret.
    pub psp_key: Secret,
    /// The account that this worker serves.
    pub psp_account: String,
    /// Calls to charge at once.
    pub calls: usize,
    /// What a call to charge may take.
    pub call_deadline: Duration,
    /// Inquiries at once.
    pub inquiries: usize,
    /// What an inquiry may take.
    pub inquiry_deadline: Duration,
    /// How charges are retried and looked up.
    pub rules: Rules,
}

/// A text that is never printed.
#[derive(Clone)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("secret")
    }
}

impl Config {
    /// Reads them.
    pub fn read(env: &mut Env) -> Self {
        let common = Common::read(env);
        let redis_url = env.required("FLORIN_REDIS_URL", "Redis, redis://host:port", String::new());
        let psp_url = env.required("FLORIN_PSP_URL", "the PSP, http://host:port", String::new());
        let psp_key = Secret(env.or("FLORIN_PSP_KEY", "the PSP's secret key", "sk_test_florin".to_owned()));
        let psp_account =
            env.or("FLORIN_PSP_ACCOUNT", "PSP account that this worker serves", "simulator-main".to_owned());
        let inquiry_base = env.millis(
            "FLORIN_INQUIRY_BASE_MS",
            "ms before the first inquiry; then 5 and 30 times that, then doubling",
            1_000,
            1,
        );
        let call_deadline = env.millis("FLORIN_PSP_DEADLINE_MS", "ms that a call to charge may take", 3_000, 1);
        let rules = Rules {
            max_retries: env.at_least("FLORIN_MAX_RETRIES", "retries after the first call", 5, 0),
            backoff: Backoff {
                base: env.millis("FLORIN_RETRY_BASE_MS", "ms before the first retry", 2_000, 1),
                cap: env.millis("FLORIN_RETRY_CAP_MS", "most ms before a retry", 60_000, 1),
            },
            inquiries: InquirySchedule {
                first: [1, 5, 30].map(|times| inquiry_base * times).to_vec(),
                cap: env.millis("FLORIN_INQUIRY_CAP_MS", "most ms before an inquiry", 1_800_000, 1),
            },
            declaration: crate::simulator::DECLARATION,
            longest_send: BEGIN_WITHIN + call_deadline,
        };
        let config = Self {
            common,
            redis_url,
            psp_url,
            psp_key,
            psp_account,
            calls: env.at_least("FLORIN_PSP_CALLS", "calls to charge at once", 64, 1),
            call_deadline,
            inquiries: env.at_least("FLORIN_PSP_INQUIRIES", "inquiries at once", 32, 1),
            inquiry_deadline: env.millis("FLORIN_PSP_INQUIRY_DEADLINE_MS", "ms that an inquiry may take", 5_000, 1),
            rules,
        };
        env.check(
            config.call_deadline < config.rules.declaration.key_retention / 4,
            "FLORIN_PSP_DEADLINE_MS: must be far below the time that the PSP keeps idempotency keys",
        );
        config
    }

    /// How long claims hold.
    #[must_use]
    pub fn leases(&self) -> Leases {
        Leases {
            oldest_key: self.rules.declaration.key_retention / 2,
            charge: self.call_deadline + LEASE_MARGIN,
            inquiry: self.inquiry_deadline + LEASE_MARGIN,
        }
    }
}
