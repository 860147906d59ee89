//! The local stack: Postgres, NATS, Redis, the PSP simulator and the four services as child processes on free loopback
//! ports, each with its own data folder, stopped by whoever started them.

pub mod process;
pub mod project;
pub mod services;
pub mod stack;
pub mod tools;

/// What went wrong, in one clear sentence.
pub type Result<T> = std::result::Result<T, String>;
