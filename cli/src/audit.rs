//! The auditor: joins what clients were told, the four databases and the PSP's own book, and checks the invariants.
//!
//! Every check reads whole tables, so that nothing is sampled; it is meant for stacks of up to a few million rows.

mod checks;
mod snapshot;

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::Result;
use crate::arguments::AuditOptions;
use crate::connection::Connection;
use crate::output::{Output, Table};

pub use snapshot::Acknowledged;

/// Between two looks while work is on its way.
const PERIOD: Duration = Duration::from_millis(500);
/// Violations shown of one invariant.
const SHOWN: usize = 5;

/// What one check found.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// Number of the invariant, from the list of reliability invariants.
    pub invariant: &'static str,
    /// What must hold.
    pub rule: &'static str,
    /// How many things were looked at.
    pub checked: usize,
    /// What does not hold: empty when all is well.
    pub violations: Vec<String>,
}

/// What the auditor found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// One finding for each invariant.
    pub findings: Vec<Finding>,
    /// Whether no invariant is violated.
    pub clean: bool,
}

impl Report {
    /// Prints it for people.
    pub fn show(&self) {
        let mut table = Table::new(&["", "RULE", ">CHECKED", "RESULT"]);
        for finding in &self.findings {
            let result = match finding.violations.len() {
                0 => "holds".to_owned(),
                count => format!("VIOLATED {count} times"),
            };
            table.row([finding.invariant.to_owned(), finding.rule.to_owned(), finding.checked.to_string(), result]);
        }
        table.print();
        for finding in &self.findings {
            for violation in finding.violations.iter().take(SHOWN) {
                println!("{}: {violation}", finding.invariant);
            }
        }
    }
}

/// Audits and prints. `false`: an invariant is violated.
///
/// # Errors
/// A database or the PSP does not answer.
pub async fn command(connection: &Connection, output: Output, options: AuditOptions) -> Result<bool> {
    let acknowledged = match &options.acknowledged {
        Some(path) => snapshot::read_acknowledged(path)?,
        None => Vec::new(),
    };
    let report = audit(connection, &acknowledged, Duration::from_secs(options.settle)).await?;
    if output.json {
        println!("{}", serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?);
    } else {
        report.show();
    }
    Ok(report.clean)
}

/// Audits. What is on its way has `settle` to arrive; what is wrong then is wrong.
///
/// # Errors
/// A database or the PSP does not answer.
pub async fn audit(connection: &Connection, acknowledged: &[Acknowledged], settle: Duration) -> Result<Report> {
    let until = Instant::now() + settle;
    loop {
        let snapshot = snapshot::Snapshot::take(connection).await?;
        let findings = checks::all(&snapshot, acknowledged);
        let clean = findings.iter().all(|finding| finding.violations.is_empty());
        if clean || Instant::now() >= until {
            return Ok(Report { findings, clean });
        }
        tokio::time::sleep(PERIOD).await;
    }
}
