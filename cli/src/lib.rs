//! The `florin` command: create, look at and explain payments, read the books, operate, audit, and load a stack.

pub mod arguments;
pub mod audit;
pub mod books;
pub mod connection;
pub mod explain;
pub mod load;
pub mod operate;
pub mod output;
pub mod pay;

/// What went wrong, in one clear sentence.
pub type Result<T> = std::result::Result<T, String>;
