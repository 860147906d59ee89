//! The stack that `make test` starts for all tests that leave it whole, and the lock of those that start their own.

use cli::connection::Connection;

/// A stack of one's own is started one at a time: two cores are enough for one.
pub static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The shared stack.
pub fn connection() -> Connection {
    Connection::find().expect("make test starts the stack that these tests need")
}
