//! Florin's platform library: what the four services share, and nothing that belongs to one.
//!
//! Three tiers, and `xtask`'s tidy test keeps the law that a module imports only from its own tier's level or below:
//!
//! * **0, no I/O**: [`account`], [`backoff`], [`clock`], [`envelope`], [`error`], [`id`], [`money`], [`page`], [`stored`],
//!   [`wire`]
//! * **1, one outside system each**: [`auth`], [`cache`], [`config`], [`health`], [`pg`], [`policy`], [`server`],
//!   [`shutdown`], [`stream`], [`telemetry`]
//! * **2, patterns over tier 1**: [`batch`], [`consumer`], [`dead_letter`], [`host`], [`inbox`], [`ops`], [`outbox`],
//!   [`partitions`], [`relay`], [`sweeper`]

pub mod account;
pub mod backoff;
pub mod clock;
pub mod envelope;
pub mod error;
pub mod id;
pub mod money;
pub mod page;
pub mod stored;
pub mod wire;

pub mod auth;
pub mod cache;
pub mod config;
pub mod health;
pub mod pg;
pub mod policy;
pub mod server;
pub mod shutdown;
pub mod stream;
pub mod telemetry;

pub mod batch;
pub mod consumer;
pub mod dead_letter;
pub mod host;
pub mod inbox;
pub mod ops;
pub mod outbox;
pub mod partitions;
pub mod relay;
pub mod sweeper;

/// The contracts, generated from `proto/`. Their documentation stands in the proto files.
#[allow(missing_docs, clippy::all, rustdoc::all, rust_2018_idioms)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/contracts.rs"));
    pub use self::florin::*;

    /// The descriptor set of everything under `proto/`, with Florin's own options.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
