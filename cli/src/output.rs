//! Tables for people, JSON for programs.

use florin::money::Money;
use florin::proto::common::v1 as common;
use prost::{Message, Name};
use prost_reflect::DynamicMessage;
use prost_types::Timestamp;

use crate::Result;

/// How to answer.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// As JSON.
    pub json: bool,
}

impl Output {
    /// Prints a message of the contracts as protobuf's own JSON, or what `people` makes of it.
    ///
    /// # Errors
    /// The message is not of the contracts.
    pub fn print<M: Message + Name>(self, message: &M, people: impl FnOnce(&M)) -> Result<()> {
        if self.json {
            println!("{}", json(message)?);
        } else {
            people(message);
        }
        Ok(())
    }
}

/// A message of the contracts as protobuf's own JSON: lowerCamelCase, 64-bit numbers as strings.
///
/// # Errors
/// The message is not of the contracts.
pub fn json<M: Message + Name>(message: &M) -> Result<String> {
    let pool = florin::policy::descriptors();
    let descriptor = pool
        .get_message_by_name(&M::full_name())
        .ok_or_else(|| format!("{} is not of the contracts", M::full_name()))?;
    let dynamic =
        DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).map_err(|error| error.to_string())?;
    serde_json::to_string_pretty(&dynamic).map_err(|error| error.to_string())
}

/// The same as a value, to stand in a larger document.
///
/// # Errors
/// The message is not of the contracts.
pub fn value<M: Message + Name>(message: &M) -> Result<serde_json::Value> {
    serde_json::from_str(&json(message)?).map_err(|error| error.to_string())
}

/// A table whose columns are as wide as they need to be. Columns of figures stand to the right.
#[derive(Debug)]
pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns; a name that begins with `>` stands to the right.
    #[must_use]
    pub fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Prints it.
    pub fn print(&self) {
        let names: Vec<&str> = self.head.iter().map(|name| name.trim_start_matches('>')).collect();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([names[column].chars().count()]).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..names.len()).map(width).collect();
        let line = |cells: Vec<&str>| {
            let cells = cells.iter().enumerate().map(|(column, cell)| {
                let width = widths.get(column).copied().unwrap_or_default();
                let right = self.head.get(column).is_some_and(|name| name.starts_with('>'));
                if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        };
        line(names.clone());
        line(widths.iter().map(|_| "").collect::<Vec<_>>());
        for row in &self.rows {
            line(row.iter().map(String::as_str).collect());
        }
        if self.rows.is_empty() {
            println!("(none)");
        }
    }
}

/// An amount for people.
#[must_use]
pub fn amount(money: Option<&common::Money>) -> String {
    match florin::wire::trusted_money(money) {
        Ok(money) => money.to_string(),
        Err(_) => "-".to_owned(),
    }
}

/// Minor units of a currency for people.
#[must_use]
pub fn units(minor_units: i64, currency_code: &str) -> String {
    currency_code.parse().map_or_else(
        |_| format!("{minor_units} {currency_code}"),
        |currency| Money::new(currency, minor_units).to_string(),
    )
}

/// A time for people.
#[must_use]
pub fn time(timestamp: Option<&Timestamp>) -> String {
    let time = timestamp.and_then(florin::wire::time);
    time.map_or_else(|| "-".to_owned(), |time| time.format("%Y-%m-%d %H:%M:%S%.3f").to_string())
}

/// The name of an enum's value without its prefix.
#[must_use]
pub fn short(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_owned()
}
