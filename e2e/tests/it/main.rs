//! One binary for all tests of the whole platform.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod api;
mod faults;
mod messaging;
mod outcomes;
mod shared;
