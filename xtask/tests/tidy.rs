//! Keeps the house in order: the import law, what may stand where, and what may not stand anywhere.

use std::fs;
use std::path::{Path, PathBuf};

use xtask::project::root;

/// The platform's tiers, from the list in `src/lib.rs`: a module imports only from its own tier or below.
const TIERS: [&[&str]; 3] = [
    &["account", "backoff", "clock", "envelope", "error", "id", "money", "page", "proto", "stored", "wire"],
    &["auth", "cache", "config", "health", "pg", "policy", "server", "shutdown", "stream", "telemetry"],
    &["batch", "consumer", "dead_letter", "host", "inbox", "ops", "outbox", "partitions", "relay", "sweeper"],
];

/// The services, which meet only in `proto/`.
const SERVICES: [&str; 4] = ["payment-api", "psp-worker", "ledger-svc", "balance-svc"];

/// What every service has, under the same name.
const ROOMS: [&str; 8] =
    ["main.rs", "lib.rs", "config.rs", "wire.rs", "service.rs", "store.rs", "consumer.rs", "error.rs"];

/// What may not stand in a Rust file, and what to do instead.
const BANS: [(&str, &str); 7] = [
    ("FIXME", "mend it, or open an issue"),
    ("TODO", "do it, or open an issue"),
    ("#[ignore", "a test runs or goes"),
    ("#[should_panic", "assert the error"),
    ("unsafe {", "find another way"),
    ("Status::internal", "florin::error::Error keeps the inside off the wire"),
    ("std::thread::sleep(std::time::Duration::from_secs", "wait for a level with a deadline"),
];

/// Longer files are no longer one room.
const MAX_LINES: usize = 500;
/// As rustfmt is told; it leaves long texts alone.
const MAX_WIDTH: usize = 160;

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if !["target", ".dev", ".git"].iter().any(|skipped| name == *skipped) {
                found.extend(files(&path, extension));
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// This file names what it forbids.
fn is_tidy_itself(path: &Path) -> bool {
    path.ends_with("xtask/tests/tidy.rs")
}

fn complain(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn the_platform_imports_downwards_only() {
    let tier = |module: &str| TIERS.iter().position(|tier| tier.contains(&module));
    let mut complaints = Vec::new();
    for path in files(&root().join("src"), "rs") {
        let module = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if module == "lib" {
            continue;
        }
        let Some(own) = tier(&module) else {
            complaints.push(format!("{} stands in no tier", shown(&path)));
            continue;
        };
        for word in read(&path).split("crate::").skip(1) {
            let imported: String = word.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            if tier(&imported).is_some_and(|imported| imported > own) {
                complaints.push(format!("{} (tier {own}) imports {imported} from above", shown(&path)));
            }
        }
    }
    complain(&complaints);
}

#[test]
fn services_never_import_each_other() {
    let mut complaints = Vec::new();
    for service in SERVICES {
        let manifest = read(&root().join(service).join("Cargo.toml"));
        for other in SERVICES.iter().filter(|other| **other != service) {
            if manifest.contains(other) {
                complaints.push(format!("{service} depends on {other}: they meet only in proto/"));
            }
        }
    }
    for package in ["psp-simulator", "xtask"] {
        if read(&root().join(package).join("Cargo.toml")).contains("florin.workspace") {
            complaints.push(format!("{package} depends on the platform library"));
        }
    }
    complain(&complaints);
}

#[test]
fn every_service_has_the_same_rooms() {
    let mut complaints = Vec::new();
    for service in SERVICES {
        for room in ROOMS {
            if !root().join(service).join("src").join(room).is_file() {
                complaints.push(format!("{service} has no {room}"));
            }
        }
        let main = read(&root().join(service).join("src/main.rs"));
        if main.lines().count() > 40 {
            complaints.push(format!("{service}/src/main.rs is longer than 40 lines"));
        }
    }
    complain(&complaints);
}

#[test]
fn sql_stands_in_stores_only() {
    let mut complaints = Vec::new();
    for service in SERVICES {
        for path in files(&root().join(service).join("src"), "rs") {
            let in_store = shown(&path).contains("/store");
            if !in_store && read(&path).contains("sqlx::query") {
                complaints.push(format!("{} holds SQL: that belongs into store.rs", shown(&path)));
            }
        }
    }
    complain(&complaints);
}

#[test]
fn nothing_banned_stands_anywhere() {
    let mut complaints = Vec::new();
    for path in files(&root(), "rs").into_iter().filter(|path| !is_tidy_itself(path)) {
        let text = read(&path);
        if !text.starts_with("//!") && !path.ends_with("tests.rs") {
            complaints.push(format!("{} does not say what it is", shown(&path)));
        }
        if text.lines().count() > MAX_LINES {
            complaints.push(format!("{} is longer than {MAX_LINES} lines", shown(&path)));
        }
        for (number, line) in text.lines().enumerate() {
            for (banned, instead) in BANS.iter().filter(|(banned, _)| line.contains(banned)) {
                complaints.push(format!("{}:{}: {banned}: {instead}", shown(&path), number + 1));
            }
            if line.chars().count() > MAX_WIDTH {
                complaints.push(format!("{}:{}: longer than {MAX_WIDTH} characters", shown(&path), number + 1));
            }
        }
    }
    complain(&complaints);
}

#[test]
fn migrations_say_why() {
    let mut complaints = Vec::new();
    for path in files(&root(), "sql") {
        if !read(&path).starts_with("--") {
            complaints.push(format!("{} does not say what it is for", shown(&path)));
        }
    }
    complain(&complaints);
}
