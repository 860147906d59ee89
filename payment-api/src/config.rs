//! Settings of payment-api.

use std::collections::HashMap;
use std::str::FromStr;
use std::time::Duration;

use florin::config::{Common, Env};
use florin::money::{Currency, Money};

/// The settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Those that every service has.
    pub common: Common,
    /// How long a payment order may stay without news before psp-worker is asked again.
    pub overdue_after: Duration,
    /// The PSP that charges.
    pub psp: Psp,
}

/// What payment-api knows of the PSP.
#[derive(Debug, Clone)]
pub struct Psp {
    /// The account that takes the money.
    pub account: String,
    /// The smallest chargeable unit per currency, where it is coarser than a minor unit.
    pub granularity: Granularity,
}

/// Smallest chargeable units, written `ISK:100,HUF:100`.
#[derive(Debug, Clone, Default)]
pub struct Granularity(HashMap<Currency, i64>);

impl Config {
    /// Reads them.
    pub fn read(env: &mut Env) -> Self {
        Self {
            common: Common::read(env),
            overdue_after: env.millis(
                "FLORIN_OVERDUE_AFTER_MS",
                "ms without news before psp-worker is asked again",
                300_000,
                1_000,
            ),
            psp: Psp {
                account: env.or("FLORIN_PSP_ACCOUNT", "PSP account that takes the money", "simulator-main".to_owned()),
                granularity: env
                    .optional("FLORIN_PSP_GRANULARITY", "smallest chargeable units, for example ISK:100,HUF:100")
                    .unwrap_or_default(),
            },
        }
    }
}

impl Granularity {
    /// The unit that an amount has to be a multiple of, where it is not.
    #[must_use]
    pub fn refuses(&self, amount: Money) -> Option<i64> {
        let unit = *self.0.get(&amount.currency)?;
        (amount.minor_units % unit != 0).then_some(unit)
    }
}

impl FromStr for Granularity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pairs = text.split(',').map(|pair| {
            let (currency, unit) = pair.split_once(':').ok_or_else(|| format!("{pair:?} is not CURRENCY:UNITS"))?;
            let unit = unit.parse().ok().filter(|unit| *unit > 0);
            let currency = currency.parse().map_err(|error| format!("{error}"))?;
            Ok((currency, unit.ok_or_else(|| format!("{pair:?} needs a positive number of units"))?))
        });
        pairs.collect::<Result<_, String>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coarse_currencies_refuse_what_the_psp_cannot_charge() {
        let granularity: Granularity = "ISK:100".parse().unwrap();
        let isk = |units| Money::new("ISK".parse().unwrap(), units);
        assert_eq!(granularity.refuses(isk(150)), Some(100));
        assert_eq!(granularity.refuses(isk(200)), None);
        assert_eq!(granularity.refuses(Money::new("EUR".parse().unwrap(), 1)), None);
        assert!("ISK:0".parse::<Granularity>().is_err());
        assert!("100".parse::<Granularity>().is_err());
    }
}
