//! Dead letters and the status of messaging.

use florin::proto::ops::v1 as ops;

use crate::Result;
use crate::arguments::DeadLetters;
use crate::connection::{Connection, SERVICES, refused};
use crate::output::{Output, Table, json, short, time, value};

/// Lists, shows or replays dead letters.
///
/// # Errors
/// A service does not answer, or there is no such dead letter.
pub async fn dead_letters(connection: &Connection, output: Output, what: DeadLetters) -> Result<bool> {
    match what {
        DeadLetters::List { all } => list(connection, output, all).await,
        DeadLetters::Get { service, id } => {
            let request = ops::GetDeadLetterRequest { dead_letter_id: id };
            let found = connection.ops(&service)?.get_dead_letter(request).await.map_err(refused)?;
            // Payload and headers are for programs in any case.
            println!("{}", json(found.get_ref())?);
            Ok(true)
        }
        DeadLetters::Replay { service, ids } => {
            let request = ops::ReplayDeadLettersRequest { dead_letter_ids: ids };
            let answer = connection.ops(&service)?.replay_dead_letters(request).await.map_err(refused)?.into_inner();
            output.print(&answer, |answer| {
                let mut table = Table::new(&["DEAD LETTER", "RESULT"]);
                for result in &answer.results {
                    let said = match (result.replayed, result.error.as_str()) {
                        (true, _) => "replayed",
                        (false, "") => "was replayed before",
                        (false, error) => error,
                    };
                    table.row([result.dead_letter_id.clone(), said.to_owned()]);
                }
                table.print();
            })?;
            Ok(answer.results.iter().all(|result| result.error.is_empty()))
        }
    }
}

/// Lists those of all services; one that does not answer is told and does not hide the others'.
async fn list(connection: &Connection, output: Output, all: bool) -> Result<bool> {
    let mut table = Table::new(&["SERVICE", "DEAD LETTER", "CONSUMER", "MESSAGE", "REASON", "DETAIL", "STATE", "WHEN"]);
    let mut documents = serde_json::Map::new();
    let mut well = true;
    for (service, _) in SERVICES {
        let request = ops::ListDeadLettersRequest { include_replayed: all, page_size: 500, ..Default::default() };
        let answer = match connection.ops(service)?.list_dead_letters(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                well = false;
                eprintln!("{service}: {}", refused(status));
                continue;
            }
        };
        documents.insert(service.to_owned(), value(&answer)?);
        for found in &answer.dead_letters {
            table.row([
                service.to_owned(),
                found.dead_letter_id.clone(),
                found.consumer.clone(),
                found.message_type.rsplit('.').next().unwrap_or_default().to_owned(),
                found.reason.clone(),
                found.detail.clone(),
                short(found.state().as_str_name(), "DEAD_LETTER_STATE_"),
                time(found.create_time.as_ref()),
            ]);
        }
    }
    if output.json {
        println!("{}", serde_json::to_string_pretty(&documents).map_err(|error| error.to_string())?);
    } else {
        table.print();
    }
    Ok(well)
}

/// Shows outboxes, consumers and dependencies of all services.
///
/// # Errors
/// An address is missing. A service that does not answer is shown as such.
pub async fn status(connection: &Connection, output: Output) -> Result<bool> {
    let mut table = Table::new(&["SERVICE", "PART", "STATE"]);
    let mut documents = serde_json::Map::new();
    let mut well = true;
    for (service, _) in SERVICES {
        let answer = match connection.ops(service)?.get_messaging_status(ops::GetMessagingStatusRequest {}).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                well = false;
                let refusal = refused(status);
                documents.insert(service.to_owned(), serde_json::json!({ "error": refusal }));
                table.row([service.to_owned(), "service".to_owned(), refusal]);
                continue;
            }
        };
        documents.insert(service.to_owned(), value(&answer)?);
        let mut row = |part: String, state: String| table.row([service.to_owned(), part, state]);
        if let Some(outbox) = &answer.outbox {
            row(
                "outbox".to_owned(),
                format!("{} to publish, led by {} (epoch {})", outbox.backlog, outbox.leader, outbox.epoch),
            );
        }
        for consumer in &answer.consumers {
            let state = format!(
                "{} to deliver, {} to acknowledge {}",
                consumer.pending, consumer.unacknowledged, consumer.error
            );
            row(format!("consumer {}", consumer.name), state);
        }
        row("dead letters".to_owned(), format!("{} open", answer.open_dead_letters));
        for dependency in &answer.dependencies {
            well &= dependency.up;
            let state = if dependency.up { "up".to_owned() } else { format!("DOWN: {}", dependency.detail) };
            row(dependency.name.clone(), state);
        }
    }
    if output.json {
        println!("{}", serde_json::to_string_pretty(&documents).map_err(|error| error.to_string())?);
    } else {
        table.print();
    }
    Ok(well)
}
