//! The outbox: messages are written in the transaction of their cause, and the relay publishes them. Rows are only
//! ever inserted.

use crate::envelope::Outgoing;
use crate::pg::Tx;

/// Writes messages, in their order.
///
/// # Errors
/// Postgres refuses them, for example one that is larger than 512 KiB.
pub async fn insert(tx: &mut Tx, messages: &[Outgoing]) -> Result<(), sqlx::Error> {
    if messages.is_empty() {
        return Ok(());
    }
    let mut event_ids = Vec::with_capacity(messages.len());
    let mut types = Vec::with_capacity(messages.len());
    let mut partitions = Vec::with_capacity(messages.len());
    let mut keys = Vec::with_capacity(messages.len());
    let mut causation_ids = Vec::with_capacity(messages.len());
    let mut traceparents = Vec::with_capacity(messages.len());
    let mut payloads = Vec::with_capacity(messages.len());
    for message in messages {
        event_ids.push(message.event_id.uuid());
        types.push(message.message_type);
        partitions.push(i16::try_from(message.partition).unwrap_or_default());
        keys.push(message.key.as_str());
        causation_ids.push(message.causation_id.map(crate::id::EventId::uuid));
        traceparents.push(message.traceparent.as_str());
        payloads.push(message.payload.as_ref());
    }
    sqlx::query!(
        r#"
        insert into outbox (event_id, message_type, partition, key, causation_id, traceparent, payload)
        select * from unnest($1::uuid[], $2::text[], $3::smallint[], $4::text[], $5::uuid[], $6::text[], $7::bytea[])
        "#,
        &event_ids,
        &types as _,
        &partitions,
        &keys as _,
        &causation_ids as _,
        &traceparents as _,
        &payloads as _,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
