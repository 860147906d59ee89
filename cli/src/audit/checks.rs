//! The invariants, each a function of the snapshot.

use std::collections::{BTreeMap, HashMap, HashSet};

use florin::id::{ChargeId, PaymentId};
use uuid::Uuid;

use super::Finding;
use super::snapshot::{Acknowledged, BookCharge, Messaging, Snapshot};

/// How old an unpublished message may be.
const MAX_AGE_SECONDS: f64 = 60.0;

/// Who consumes which messages of whom: publisher, message, consuming service, consumer. ledger-svc has no inbox: its
/// entries name the events.
const ROUTES: [(&str, &str, &str, &str); 4] = [
    ("payment-api", "florin.psp.v1.ExecuteCharges", "psp-worker", "psp-worker-charges"),
    ("psp-worker", "florin.psp.v1.ChargesCompleted", "payment-api", "payment-api-results"),
    ("psp-worker", "florin.psp.v1.ChargesProgressed", "payment-api", "payment-api-results"),
    ("ledger-svc", "florin.ledger.v1.EntriesRecorded", "balance-svc", "balance-svc-entries"),
];

/// All invariants.
pub(super) fn all(snapshot: &Snapshot, acknowledged: &[Acknowledged]) -> Vec<Finding> {
    vec![
        postings_balance(snapshot),
        money_is_conserved(snapshot),
        acknowledged_is_durable(snapshot, acknowledged),
        charged_at_most_once(snapshot),
        three_books_agree(snapshot),
        no_orphans(snapshot),
        outbox_is_complete(snapshot),
        inbox_is_exact(snapshot),
        balances_are_the_fold(snapshot),
        everything_ended(snapshot),
    ]
}

fn finding(invariant: &'static str, rule: &'static str, checked: usize, violations: Vec<String>) -> Finding {
    Finding { invariant, rule, checked, violations }
}

fn postings_balance(snapshot: &Snapshot) -> Finding {
    let wrong = snapshot.lines.iter().filter(|line| {
        line.amount < 1
            || line.debit_currency != line.currency
            || line.credit_currency != line.currency
            || line.debit_account == line.credit_account
    });
    let mut violations: Vec<String> = wrong.map(|line| format!("entry {} does not balance", line.entry_id)).collect();
    let with_lines: HashSet<Uuid> = snapshot.lines.iter().map(|line| line.entry_id).collect();
    let entries = usize::try_from(snapshot.entries).unwrap_or_default();
    if with_lines.len() != entries {
        violations.push(format!("{} entries have no postings", entries.abs_diff(with_lines.len())));
    }
    finding("I1", "every posting balances", snapshot.lines.len(), violations)
}

fn money_is_conserved(snapshot: &Snapshot) -> Finding {
    let mut sums: BTreeMap<&str, i128> = BTreeMap::new();
    for balance in &snapshot.balances {
        let currency = balance.account.rsplit('.').next().unwrap_or_default();
        *sums.entry(currency).or_default() += i128::from(balance.debits) - i128::from(balance.credits);
    }
    for line in &snapshot.lines {
        *sums.entry(&line.debit_currency).or_default() += i128::from(line.amount);
        *sums.entry(&line.credit_currency).or_default() -= i128::from(line.amount);
    }
    let wrong = sums.iter().filter(|(_, sum)| **sum != 0);
    let violations = wrong.map(|(currency, sum)| format!("{currency} sums to {sum}")).collect();
    finding("I2", "every currency sums to zero", sums.len(), violations)
}

fn acknowledged_is_durable(snapshot: &Snapshot, acknowledged: &[Acknowledged]) -> Finding {
    let payments: HashMap<String, (&str, i64)> = snapshot
        .payments
        .iter()
        .map(|payment| {
            (PaymentId::from_uuid(payment.payment_id).to_string(), (payment.currency.as_str(), payment.total))
        })
        .collect();
    let lost = acknowledged
        .iter()
        .filter(|told| payments.get(&told.payment_id) != Some(&(told.currency.as_str(), told.total)));
    let violations =
        lost.map(|told| format!("{} was acknowledged and is not there as told", told.payment_id)).collect();
    finding("I3", "every acknowledged payment is there", acknowledged.len(), violations)
}

/// Charges that moved money, by our reference.
fn executed(charges: &[BookCharge]) -> impl Iterator<Item = &BookCharge> {
    charges.iter().filter(|charge| charge.executed)
}

fn charged_at_most_once(snapshot: &Snapshot) -> Finding {
    let twice = snapshot.book.iter().filter(|(_, charges)| executed(charges).count() > 1);
    let violations = twice
        .map(|(reference, charges)| format!("{reference} was charged {} times", executed(charges).count()))
        .collect();
    finding("I4", "no charge was executed twice", snapshot.book.len(), violations)
}

/// Order by order: what the PSP took, what the order captured, what the ledger posted.
fn three_books_agree(snapshot: &Snapshot) -> Finding {
    let mut captures: HashMap<Uuid, (i64, &str, Option<&str>)> = HashMap::new();
    let mut fees: HashMap<Uuid, i64> = HashMap::new();
    for line in &snapshot.lines {
        match line.kind.as_str() {
            "CAPTURE" => {
                captures.insert(line.operation_id, (line.amount, &line.currency, line.seller_id.as_deref()));
            }
            "FEE" => *fees.entry(line.operation_id).or_default() += line.amount,
            _ => {}
        }
    }
    let mut violations = Vec::new();
    for order in &snapshot.orders {
        let reference = ChargeId::from_uuid(order.charge_id).to_string();
        let at_psp = snapshot.book.get(&reference).into_iter().flat_map(|charges| executed(charges));
        let at_psp: Vec<(i64, &str)> = at_psp.map(|charge| (charge.amount, charge.currency.as_str())).collect();
        let taken: i64 = at_psp.iter().map(|(amount, _)| amount).sum();
        let posted = captures.get(&order.charge_id);
        let posted_amount = posted.map_or(0, |(amount, ..)| *amount);
        let seller_agrees = posted.is_none_or(|(_, _, seller)| *seller == Some(order.seller_id.as_str()));
        let currency_agrees = at_psp.iter().all(|(_, currency)| *currency == order.currency)
            && posted.is_none_or(|(_, currency, _)| *currency == order.currency);
        let fee = if order.captured > 0 { order.fee } else { 0 };
        let fee_agrees = fees.get(&order.charge_id).copied().unwrap_or_default() == fee;
        if taken != order.captured
            || posted_amount != order.captured
            || !currency_agrees
            || !fee_agrees
            || !seller_agrees
        {
            violations.push(format!(
                "{reference} ({}): the PSP took {taken}, the order captured {}, the ledger posted {posted_amount} {}",
                order.state, order.captured, order.currency
            ));
        }
    }
    finding("I5", "PSP = payment orders = ledger", snapshot.orders.len(), violations)
}

fn no_orphans(snapshot: &Snapshot) -> Finding {
    let attempted: HashSet<String> = snapshot
        .charges
        .iter()
        .filter(|charge| charge.attempts > 0)
        .map(|charge| ChargeId::from_uuid(charge.charge_id).to_string())
        .collect();
    let orders: HashSet<Uuid> = snapshot.orders.iter().map(|order| order.payment_order_id).collect();
    let payments: HashSet<Uuid> = snapshot.payments.iter().map(|payment| payment.payment_id).collect();
    let mut violations: Vec<String> = snapshot
        .book
        .keys()
        .filter(|reference| !attempted.contains(*reference))
        .map(|reference| format!("the PSP has {reference}, and no attempt of ours made it"))
        .collect();
    let entries =
        snapshot.lines.iter().filter(|line| line.payment_order_id.is_some_and(|order| !orders.contains(&order)));
    violations.extend(entries.map(|line| format!("entry {} is of no payment order", line.entry_id)));
    let charges = snapshot.charges.iter().filter(|charge| !orders.contains(&charge.payment_order_id));
    violations.extend(charges.map(|charge| format!("charge {} is of no payment order", charge.charge_id)));
    let orphans = snapshot.orders.iter().filter(|order| !payments.contains(&order.payment_id));
    violations.extend(orphans.map(|order| format!("payment order {} is of no payment", order.payment_order_id)));
    if snapshot.unexpected_charges > 0 {
        violations
            .push(format!("{} charges took money for orders that had failed: owed back", snapshot.unexpected_charges));
    }
    finding("I6", "no effect without its cause", snapshot.book.len() + snapshot.lines.len(), violations)
}

fn of<'a>(snapshot: &'a Snapshot, service: &str) -> Option<&'a Messaging> {
    snapshot.messaging.iter().find(|messaging| messaging.service == service)
}

/// Events of a kind that a service has written.
fn written<'a>(snapshot: &'a Snapshot, service: &str, message: &'a str) -> impl Iterator<Item = Uuid> + 'a {
    let outbox = of(snapshot, service).map(|messaging| messaging.outbox.as_slice()).unwrap_or_default();
    outbox.iter().filter(move |event| event.message_type == message).map(|event| event.event_id)
}

fn applied(snapshot: &Snapshot, service: &str, consumer: &str) -> HashSet<Uuid> {
    let inbox = of(snapshot, service).map(|messaging| messaging.inbox.as_slice()).unwrap_or_default();
    inbox.iter().filter(|event| event.consumer == consumer).map(|event| event.event_id).collect()
}

fn outbox_is_complete(snapshot: &Snapshot) -> Finding {
    let mut violations = Vec::new();
    for (publisher, message, service, consumer) in ROUTES {
        let applied = applied(snapshot, service, consumer);
        let missing = written(snapshot, publisher, message).filter(|event| !applied.contains(event)).count();
        if missing > 0 {
            violations.push(format!("{consumer} lacks {missing} {message}"));
        }
    }
    let posted: HashSet<Uuid> = snapshot.posted_events.iter().copied().collect();
    let missing = written(snapshot, "payment-api", "florin.payment.v1.PaymentOrdersSucceeded")
        .filter(|event| !posted.contains(event))
        .count();
    if missing > 0 {
        violations.push(format!("the ledger lacks the entries of {missing} PaymentOrdersSucceeded"));
    }
    for messaging in &snapshot.messaging {
        let stuck =
            messaging.outbox.iter().filter(|event| !event.published && event.age_seconds > MAX_AGE_SECONDS).count();
        if stuck > 0 {
            violations.push(format!("{} has not published {stuck} messages for over a minute", messaging.service));
        }
        if messaging.open_dead_letters > 0 {
            violations.push(format!("{} has {} open dead letters", messaging.service, messaging.open_dead_letters));
        }
    }
    let events = snapshot.messaging.iter().map(|messaging| messaging.outbox.len()).sum();
    finding("I9", "every event has its effects", events, violations)
}

fn inbox_is_exact(snapshot: &Snapshot) -> Finding {
    let mut written_to: BTreeMap<(&str, &str), HashSet<Uuid>> = BTreeMap::new();
    for (publisher, message, service, consumer) in ROUTES {
        written_to.entry((service, consumer)).or_default().extend(written(snapshot, publisher, message));
    }
    let mut checked = 0;
    let mut violations = Vec::new();
    for ((service, consumer), written) in written_to {
        let applied = applied(snapshot, service, consumer);
        checked += applied.len();
        let unknown = applied.difference(&written).count();
        if unknown > 0 {
            violations.push(format!("{consumer} applied {unknown} events that nobody wrote"));
        }
    }
    finding("I10", "every applied event was written", checked, violations)
}

fn balances_are_the_fold(snapshot: &Snapshot) -> Finding {
    let mut fold: BTreeMap<&str, (i64, i64, i64)> = BTreeMap::new();
    for line in &snapshot.lines {
        let debit = fold.entry(&line.debit_account).or_default();
        *debit = (debit.0 + line.amount, debit.1, debit.2 + 1);
        let credit = fold.entry(&line.credit_account).or_default();
        *credit = (credit.0, credit.1 + line.amount, credit.2 + 1);
    }
    let mut violations = Vec::new();
    for balance in &snapshot.balances {
        let expected = fold.remove(balance.account.as_str()).unwrap_or_default();
        if expected != (balance.debits, balance.credits, balance.version) {
            violations.push(format!(
                "{}: the balance is {:?}, the fold {expected:?}",
                balance.account,
                (balance.debits, balance.credits, balance.version)
            ));
        }
    }
    violations
        .extend(fold.keys().map(|account| format!("{account}: the journal has postings, the balances have none")));
    finding("I11", "balances = fold of the journal", snapshot.balances.len(), violations)
}

fn everything_ended(snapshot: &Snapshot) -> Finding {
    let pending = |charge: &Uuid| {
        let reference = ChargeId::from_uuid(*charge).to_string();
        snapshot.book.get(&reference).is_some_and(|charges| charges.iter().any(|charge| charge.status == "pending"))
    };
    let is_final = |state: &str| ["SUCCEEDED", "FAILED", "CANCELED"].contains(&state);
    let open: Vec<_> =
        snapshot.orders.iter().filter(|order| !is_final(&order.state) && !pending(&order.charge_id)).collect();
    let mut violations: Vec<String> =
        open.iter().map(|order| format!("payment order {} is still {}", order.payment_order_id, order.state)).collect();
    let waiting: HashSet<Uuid> =
        snapshot.orders.iter().filter(|order| !is_final(&order.state)).map(|order| order.payment_id).collect();
    let mut succeeded: HashMap<Uuid, i32> = HashMap::new();
    for order in snapshot.orders.iter().filter(|order| order.state == "SUCCEEDED") {
        *succeeded.entry(order.payment_id).or_default() += 1;
    }
    for payment in &snapshot.payments {
        let expected = succeeded.get(&payment.payment_id).copied().unwrap_or_default();
        let ended = payment.open_orders == 0;
        let state = match (ended, expected) {
            (false, _) => None,
            (true, n) if n == payment.order_count => Some("SUCCEEDED"),
            (true, 0) => Some("FAILED"),
            (true, _) => Some("PARTIALLY_SUCCEEDED"),
        };
        let rolled_up = payment.succeeded_orders == expected && state.is_none_or(|state| state == payment.state);
        if !rolled_up || ended == waiting.contains(&payment.payment_id) {
            violations.push(format!(
                "payment {} is {} with {expected} of {} orders succeeded",
                payment.payment_id, payment.state, payment.order_count
            ));
        }
    }
    let review = snapshot.charges.iter().filter(|charge| charge.state == "REVIEW").count();
    if review > 0 {
        violations.push(format!("{review} charges wait for an operator: the PSP's amount is not ours"));
    }
    finding("I12", "everything has come to its end", snapshot.orders.len(), violations)
}
