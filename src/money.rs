//! Money: exact amounts in minor units of an ISO 4217 currency. No floats, no silent overflow.

use std::fmt;
use std::str::FromStr;

/// The largest amount of one payment, in minor units.
pub const MAX_MINOR_UNITS: i64 = 999_999_999_999;

/// An ISO 4217 currency that has minor units.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Currency([u8; 3]);

/// The text is no ISO 4217 currency with minor units.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no ISO 4217 currency with minor units")]
pub struct UnknownCurrency(pub String);

impl Currency {
    /// The three-letter code.
    #[must_use]
    pub fn code(&self) -> &str {
        std::str::from_utf8(&self.0).expect("built from an ASCII code")
    }

    /// Decimal places of the minor unit: JPY 0, EUR 2, KWD 3. From the currency table of ISO 4217.
    #[must_use]
    pub fn exponent(&self) -> u32 {
        exponent(self.code()).expect("checked when built")
    }
}

fn exponent(code: &str) -> Option<u32> {
    iso_currency::Currency::from_code(code)?.exponent().map(u32::from)
}

impl FromStr for Currency {
    type Err = UnknownCurrency;

    fn from_str(code: &str) -> Result<Self, UnknownCurrency> {
        let unknown = || UnknownCurrency(code.to_owned());
        let bytes: [u8; 3] = code.as_bytes().try_into().map_err(|_| unknown())?;
        // Precious metals and test codes have no minor unit, so nothing can be paid in them.
        exponent(code).ok_or_else(unknown)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// An amount in minor units of one currency. May be negative: a balance can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Money {
    /// The currency.
    pub currency: Currency,
    /// Minor units of that currency.
    pub minor_units: i64,
}

/// Why two amounts could not be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// They are in different currencies.
    #[error("{0} and {1} cannot be added")]
    Mixed(Currency, Currency),
    /// The sum does not fit 64 bits.
    #[error("the sum does not fit 64 bits")]
    Overflow,
}

impl Money {
    /// `minor_units` of `currency`.
    #[must_use]
    pub fn new(currency: Currency, minor_units: i64) -> Self {
        Self { currency, minor_units }
    }

    /// The currency's three-letter code.
    #[must_use]
    pub fn currency_code(&self) -> &str {
        self.currency.code()
    }

    /// The sum of two amounts of one currency.
    ///
    /// # Errors
    /// The currencies differ, or the sum does not fit 64 bits.
    pub fn checked_add(self, other: Self) -> Result<Self, MoneyError> {
        if self.currency != other.currency {
            return Err(MoneyError::Mixed(self.currency, other.currency));
        }
        let sum = self.minor_units.checked_add(other.minor_units).ok_or(MoneyError::Overflow)?;
        Ok(Self::new(self.currency, sum))
    }
}

impl fmt::Display for Money {
    /// For people: `12.34 EUR`, `500 JPY`, `-0.500 KWD`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exponent = usize::try_from(self.currency.exponent()).map_err(|_| fmt::Error)?;
        let sign = if self.minor_units < 0 { "-" } else { "" };
        let digits = format!("{:0>width$}", self.minor_units.unsigned_abs(), width = exponent + 1);
        let (major, minor) = digits.split_at(digits.len() - exponent);
        let point = if exponent == 0 { "" } else { "." };
        f.pad(&format!("{sign}{major}{point}{minor} {}", self.currency))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn money(code: &str, minor_units: i64) -> Money {
        Money::new(code.parse().unwrap(), minor_units)
    }

    #[test]
    fn exponents_come_from_iso_4217() {
        for (code, exponent) in [("JPY", 0), ("EUR", 2), ("USD", 2), ("KWD", 3), ("BHD", 3)] {
            assert_eq!(code.parse::<Currency>().unwrap().exponent(), exponent, "{code}");
        }
    }

    #[test]
    fn what_is_no_currency_is_refused() {
        for code in ["", "EU", "EURO", "eur", "ZZZ", "XAU", "E€", "€"] {
            assert!(code.parse::<Currency>().is_err(), "{code:?}");
        }
    }

    #[test]
    fn people_read_the_point_where_the_currency_has_it() {
        for (amount, shown) in [
            (money("EUR", 1234), "12.34 EUR"),
            (money("EUR", 5), "0.05 EUR"),
            (money("EUR", -5), "-0.05 EUR"),
            (money("JPY", 500), "500 JPY"),
            (money("KWD", 500), "0.500 KWD"),
            (money("EUR", i64::MIN), "-92233720368547758.08 EUR"),
        ] {
            assert_eq!(amount.to_string(), shown);
        }
    }

    #[test]
    fn adding_checks_currency_and_range() {
        assert_eq!(money("EUR", 1).checked_add(money("EUR", 2)), Ok(money("EUR", 3)));
        assert!(matches!(money("EUR", 1).checked_add(money("USD", 2)), Err(MoneyError::Mixed(..))));
        assert_eq!(money("EUR", i64::MAX).checked_add(money("EUR", 1)), Err(MoneyError::Overflow));
    }
}
