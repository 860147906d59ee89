//! The inbox: the ids of events that were applied, written in the transaction of their effect.

use std::collections::HashSet;

use sqlx::PgPool;
use uuid::Uuid;

use crate::pg::Tx;

/// The times of events that the inbox can tell new from old. Outside of it an event is parked, never applied again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    oldest: Uuid,
    newest: Uuid,
}

impl Range {
    /// Reads it from the inbox's partitions.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn read(pool: &PgPool) -> Result<Self, sqlx::Error> {
        let row = sqlx::query!("select oldest, newest from florin_inbox_range()").fetch_one(pool).await?;
        Ok(Self { oldest: row.oldest.unwrap_or(Uuid::max()), newest: row.newest.unwrap_or(Uuid::nil()) })
    }

    /// Why an event is outside; `None` where it is inside.
    #[must_use]
    pub fn refuses(&self, event_id: Uuid) -> Option<&'static str> {
        if event_id < self.oldest {
            Some("EVENT_TOO_OLD")
        } else if event_id >= self.newest {
            Some("EVENT_FROM_THE_FUTURE")
        } else {
            None
        }
    }
}

/// Notes events as applied and answers which of them are new. Sorted, so that replicas cannot deadlock.
///
/// # Errors
/// Postgres does not answer, or there is no partition for an event.
pub async fn insert(tx: &mut Tx, consumer: &str, event_ids: &[Uuid]) -> Result<HashSet<Uuid>, sqlx::Error> {
    let new = sqlx::query_scalar!(
        r#"
        insert into inbox (event_id, consumer)
        select distinct event_id, $2 from unnest($1::uuid[]) as event (event_id) order by event_id
        on conflict do nothing
        returning event_id
        "#,
        event_ids,
        consumer,
    );
    Ok(new.fetch_all(&mut **tx).await?.into_iter().collect())
}

/// Which of these events the consumer has not applied.
///
/// # Errors
/// Postgres does not answer.
pub async fn missing(pool: &PgPool, consumer: &str, event_ids: &[Uuid]) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        select event_id as "event_id!" from unnest($1::uuid[]) as event (event_id)
        where not exists (select from inbox where inbox.event_id = event.event_id and consumer = $2)
        "#,
        event_ids,
        consumer,
    )
    .fetch_all(pool)
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_inbox_cannot_know_is_refused() {
        let range = Range { oldest: Uuid::from_u128(10), newest: Uuid::from_u128(20) };
        assert_eq!(range.refuses(Uuid::from_u128(9)), Some("EVENT_TOO_OLD"));
        assert_eq!(range.refuses(Uuid::from_u128(10)), None);
        assert_eq!(range.refuses(Uuid::from_u128(20)), Some("EVENT_FROM_THE_FUTURE"));
    }
}
