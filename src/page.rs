//! Pages of lists (AIP-158): sizes, and tokens that are bound to their query.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use crate::error::{Reason, Violation};

/// The most rows of a page.
pub const MAX_PAGE_SIZE: i64 = 500;
/// The rows of a page whose size was not given.
const DEFAULT_PAGE_SIZE: i64 = 50;
/// Bytes of the query's hash that a token carries.
const HASH_BYTES: usize = 8;

/// The number of rows for a requested size: 0 means 50; more than 500 are answered as 500 (AIP-158).
///
/// # Errors
/// The size is negative.
pub fn size(requested: i32) -> Result<i64, Violation> {
    match requested {
        0 => Ok(DEFAULT_PAGE_SIZE),
        1.. => Ok(i64::from(requested).min(MAX_PAGE_SIZE)),
        _ => Err(Violation {
            field: "page_size".into(),
            reason: Reason::PageSizeInvalid,
            description: "must not be negative".into(),
        }),
    }
}

/// A query that is answered in pages: its name, its caller and its filters.
#[derive(Debug, Clone)]
pub struct Query {
    hash: [u8; HASH_BYTES],
}

impl Query {
    /// The query of this RPC by this merchant with these filters. `filters` may be any stable text.
    #[must_use]
    pub fn new(rpc: &str, merchant: &str, filters: &str) -> Self {
        let digest = Sha256::digest(format!("{rpc}\0{merchant}\0{filters}"));
        let mut hash = [0; HASH_BYTES];
        hash.copy_from_slice(&digest[..HASH_BYTES]);
        Self { hash }
    }

    /// The token of the page after the row at `position`.
    #[must_use]
    pub fn token(&self, position: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode([&self.hash[..], position].concat())
    }

    /// The position that a token names; `None` for the first page.
    ///
    /// # Errors
    /// The token is none of ours, or belongs to another query.
    pub fn position<const N: usize>(&self, token: &str) -> Result<Option<[u8; N]>, Violation> {
        if token.is_empty() {
            return Ok(None);
        }
        let malformed = || violation(Reason::PageTokenMalformed, "is no token of ours");
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| malformed())?;
        let (hash, position) = bytes.split_at_checked(HASH_BYTES).ok_or_else(malformed)?;
        if hash != self.hash {
            return Err(violation(
                Reason::PageTokenOfOtherQuery,
                "belongs to another query: repeat the filters of the call that answered it",
            ));
        }
        position.try_into().map(Some).map_err(|_| malformed())
    }
}

fn violation(reason: Reason, description: &str) -> Violation {
    Violation { field: "page_token".into(), reason, description: description.into() }
}

/// Cuts off the row that was read only to know whether there is a next page, and gives that page's token.
#[must_use]
pub fn cut<T>(rows: &mut Vec<T>, size: i64, query: &Query, position: impl Fn(&T) -> Vec<u8>) -> String {
    let size = usize::try_from(size).unwrap_or_default();
    if rows.len() <= size {
        return String::new();
    }
    rows.truncate(size);
    rows.last().map(|row| query.token(&position(row))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_back_to_its_position() {
        let query = Query::new("ListPayments", "dev", "seller=a");
        assert_eq!(query.position(&query.token(&7_i64.to_be_bytes())), Ok(Some(7_i64.to_be_bytes())));
        assert_eq!(query.position::<8>(""), Ok(None));
    }

    #[test]
    fn a_token_of_another_query_or_merchant_is_refused() {
        let token = Query::new("ListPayments", "dev", "seller=a").token(&[0; 8]);
        for other in [Query::new("ListPayments", "dev", "seller=b"), Query::new("ListPayments", "eve", "seller=a")] {
            assert_eq!(other.position::<8>(&token).unwrap_err().reason, Reason::PageTokenOfOtherQuery);
        }
    }

    #[test]
    fn garbage_is_refused() {
        let query = Query::new("ListPayments", "dev", "");
        for token in ["x", "!!!!", "AAAA", &query.token(&[1, 2, 3])] {
            assert_eq!(query.position::<8>(token).unwrap_err().reason, Reason::PageTokenMalformed, "{token}");
        }
    }

    #[test]
    fn the_page_after_the_last_row_is_none() {
        let query = Query::new("q", "dev", "");
        let mut rows = vec![1, 2, 3];
        assert_eq!(cut(&mut rows, 3, &query, |_| vec![]), "");
        assert_ne!(cut(&mut rows, 2, &query, |_| vec![]), "");
        assert_eq!(rows, [1, 2]);
    }
}
