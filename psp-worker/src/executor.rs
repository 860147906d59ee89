//! Executes due charges: claims as many as there are free slots, calls the PSP, and writes results in batches.
//!
//! Two lanes, so that look-ups go on while all slots to charge are held by a slow PSP. Each lane's slots are its
//! bulkhead; nothing queues in memory, because the queue is the table. A call begins within a second of
//! its claim, by this process's own steady clock, or not at all: one that was paused wakes up harmless.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use florin::batch::{Batcher, Limits};
use florin::clock::Clock;
use florin::error::Error;
use florin::health::Health;
use florin::pg::{self, Class, Tx};
use florin::sweeper::{self, Hint, Round};
use florin::telemetry;
use rand::SeedableRng as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::alarm::Alarm;
use crate::attempt::{Action, Charge, Rules};
use crate::breaker::{Breaker, Signal};
use crate::config::{BEGIN_WITHIN, Config};
use crate::psp::{Answer, Call, NotTaken, Psp};
use crate::store::{Judged, Store};
use crate::wire::inquiry_result;

/// The sweeper's period: what a flushed alarm clock costs at most.
const PERIOD: Duration = Duration::from_millis(500);
/// Results written in one transaction at most, and results that may wait.
const RESULTS: Limits = Limits { batch: 256, queue: 8192 };
/// How often a batch of results is tried; after that the lease ends and an inquiry finds the truth.
const WRITE_TRIES: u32 = 20;
/// Between two of these.
const BETWEEN_TRIES: Duration = Duration::from_millis(250);

/// One kind of work with its slots.
#[derive(Debug, Clone)]
struct Lane {
    action: Action,
    deadline: Duration,
    slots: Arc<Semaphore>,
    hint: Hint,
    /// The last claim left something behind: a freed slot is worth a look.
    more: Arc<AtomicBool>,
}

/// A claimed charge with its slot and the time by which its call has to begin.
#[derive(Debug)]
pub struct Claimed {
    charge: Charge,
    lane: Action,
    slot: OwnedSemaphorePermit,
    call_before: Instant,
    /// When the claim was answered, by this process's steady clock.
    claimed: Instant,
}

/// The executor.
#[derive(Debug, Clone)]
pub struct Executor {
    store: Store,
    psp: Arc<dyn Psp>,
    rules: Arc<Rules>,
    clock: Arc<dyn Clock>,
    charges: Lane,
    inquiries: Lane,
    breaker: Breaker,
    results: Batcher<Judged, ()>,
    running: TaskTracker,
    health: Health,
}

impl Executor {
    /// An executor for this PSP.
    #[must_use]
    pub fn new(
        config: &Config,
        store: Store,
        psp: Arc<dyn Psp>,
        alarm: Alarm,
        clock: Arc<dyn Clock>,
        health: Health,
    ) -> Self {
        let lane = |action, slots, deadline| Lane {
            action,
            deadline,
            slots: Arc::new(Semaphore::new(slots)),
            hint: Hint::default(),
            more: Arc::default(),
        };
        let writer = store.clone();
        let results = Batcher::start(RESULTS, move |batch: Vec<Judged>| {
            let (store, alarm) = (writer.clone(), alarm.clone());
            async move { record(store, alarm, batch).await }
        });
        health.needs(&format!("psp:{}", psp.name()), false);
        Self {
            charges: lane(Action::Charge, config.calls, config.call_deadline),
            inquiries: lane(Action::Inquire, config.inquiries, config.inquiry_deadline),
            breaker: Breaker::new(Arc::clone(&clock)),
            rules: Arc::new(config.rules.clone()),
            running: TaskTracker::new(),
            store,
            psp,
            clock,
            results,
            health,
        }
    }

    /// Hints that something is due.
    #[must_use]
    pub fn hints(&self) -> Vec<Hint> {
        vec![self.charges.hint.clone(), self.inquiries.hint.clone()]
    }

    /// Claims and executes until `stop`, then finishes what is under way.
    pub async fn run(self, stop: CancellationToken) {
        let work = |lane: &Lane| {
            let (executor, lane) = (self.clone(), lane.clone());
            let stop = stop.clone();
            async move {
                sweeper::run("claimer", PERIOD, lane.hint.clone(), stop, || executor.round(&lane)).await;
            }
        };
        tokio::join!(work(&self.charges), work(&self.inquiries), self.observe(stop.clone()));
        self.running.close();
        self.running.wait().await;
    }

    async fn round(&self, lane: &Lane) -> Result<Round, sqlx::Error> {
        let Some(slots) = self.free_slots(lane) else { return Ok(Round::Done) };
        let asked = self.clock.instant();
        let claimed = match self.store.claim(lane.action, count(&slots)).await {
            Ok(claimed) => claimed,
            Err(error) => {
                self.give_probe_back(lane);
                return Err(error);
            }
        };
        let full = claimed.len() == slots.num_permits();
        lane.more.store(full, Ordering::Relaxed);
        let claimed = self.seat(lane, slots, asked, claimed);
        self.start(claimed);
        Ok(if full { Round::More } else { Round::Done })
    }

    /// The lane's free slots, as far as the breaker lets calls through.
    fn free_slots(&self, lane: &Lane) -> Option<OwnedSemaphorePermit> {
        let free = lane.slots.available_permits();
        if free == 0 {
            // Whoever frees a slot looks again.
            lane.more.store(true, Ordering::Relaxed);
        }
        let free = if lane.action == Action::Charge && free > 0 { self.breaker.allowance(free) } else { free };
        let free = u32::try_from(free).ok().filter(|free| *free > 0)?;
        Arc::clone(&lane.slots).try_acquire_many_owned(free).ok()
    }

    /// Claims new charges in the transaction that accepted them: a lone payment pays for one commit only.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub async fn claim_in_tx(&self, tx: &mut Tx) -> Result<Vec<Claimed>, sqlx::Error> {
        let Some(slots) = self.free_slots(&self.charges) else { return Ok(Vec::new()) };
        let asked = self.clock.instant();
        let charges = self.store.claim_in_tx(tx, Action::Charge, count(&slots)).await?;
        if charges.len() == slots.num_permits() {
            self.charges.more.store(true, Ordering::Relaxed);
        }
        Ok(self.seat(&self.charges, slots, asked, charges))
    }

    /// Gives each claimed charge a slot and frees the rest.
    fn seat(&self, lane: &Lane, mut slots: OwnedSemaphorePermit, asked: Instant, charges: Vec<Charge>) -> Vec<Claimed> {
        if charges.is_empty() {
            self.give_probe_back(lane);
        }
        // A call that begins later could still be under way when look-ups count on its end.
        let call_before = asked + BEGIN_WITHIN;
        let claimed = self.clock.instant();
        let seats = charges.into_iter().map_while(|charge| {
            Some(Claimed { charge, lane: lane.action, slot: slots.split(1)?, call_before, claimed })
        });
        seats.collect()
    }

    /// Inquiries are never held back by the breaker, so they hold no probe.
    fn give_probe_back(&self, lane: &Lane) {
        if lane.action == Action::Charge {
            self.breaker.unused();
        }
    }

    /// Starts the calls of committed claims.
    pub fn start(&self, claimed: Vec<Claimed>) {
        for claim in claimed {
            let executor = self.clone();
            self.running.spawn(async move { executor.execute(claim).await });
        }
    }

    async fn execute(&self, claimed: Claimed) {
        let Claimed { mut charge, lane, slot, call_before, claimed } = claimed;
        let lane = match lane {
            Action::Charge => &self.charges,
            Action::Inquire => &self.inquiries,
        };
        if self.clock.instant() >= call_before {
            tracing::warn!(chargeId = %charge.charge_id, "woke up too late; the call is left to its next owner");
            return;
        }
        let sent_at = self.clock.now();
        let began = self.clock.instant();
        let answer = self.call(lane, &charge).await;
        self.observe_call(lane.action, &answer, began);
        tracing::debug!(
            traceId = telemetry::trace_id(&charge.traceparent), eventId = %charge.event_id, aggregateId = %charge.charge_id,
            paymentId = %charge.payment_id, paymentOrderId = %charge.payment_order_id, sellerId = charge.seller_id,
            operation = lane.action.as_str(), result = answer.label(), "the PSP answered"
        );
        drop(slot);
        if lane.more.swap(false, Ordering::Relaxed) {
            lane.hint.give();
        }
        // The database's time, whatever this machine's wall clock says: ages of keys and waits decide about money.
        let now = charge.read_at + chrono::Duration::from_std(self.clock.instant() - claimed).unwrap_or_default();
        let verdict = charge.apply(lane.action, &answer, &self.rules, now, &mut rand::rngs::SmallRng::from_os_rng());
        let judged = Judged { inquiry_result: inquiry_result(&answer), charge, action: lane.action, verdict, sent_at };
        if let Err(error) = self.results.submit(judged, None).await {
            tracing::warn!(%error, "a result was not written; the lease ends and an inquiry finds the truth");
        }
    }

    async fn call(&self, lane: &Lane, charge: &Charge) -> Answer {
        let answer = async {
            match lane.action {
                Action::Charge => {
                    let call = Call {
                        charge_id: charge.charge_id,
                        idempotency_key: charge.idempotency_key(),
                        amount: charge.amount,
                        payment_token: charge.payment_token.clone(),
                        description: charge.order_id.clone(),
                    };
                    self.psp.charge(&call).await
                }
                Action::Inquire => self.psp.inquire(charge.charge_id, &charge.idempotency_key()).await,
            }
        };
        let late = |_| Answer::Unknown { code: "TIMEOUT", message: "no answer within the deadline".to_owned() };
        tokio::time::timeout(lane.deadline, answer).await.unwrap_or_else(late)
    }

    fn observe_call(&self, action: Action, answer: &Answer, began: Instant) {
        let operation = action.as_str();
        metrics::counter!("florin_psp_calls_total", "operation" => operation, "result" => answer.label()).increment(1);
        metrics::histogram!("florin_psp_call_seconds", "operation" => operation)
            .record((self.clock.instant() - began).as_secs_f64());
        self.breaker.note(match answer {
            Answer::NotTaken { why: NotTaken::Refused, .. } | Answer::Unknown { code: "HTTP_5XX", .. } => {
                Signal::Refused
            }
            Answer::NotTaken { why: NotTaken::Forbidden, .. } => Signal::Forbidden,
            _ => Signal::Reached,
        });
    }

    /// Tells operators what is uncertain and whether the PSP takes calls.
    async fn observe(&self, stop: CancellationToken) {
        let name = format!("psp:{}", self.psp.name());
        sweeper::run("observer", Duration::from_secs(2), Hint::default(), stop, || async {
            self.health.report(&name, self.breaker.health());
            let retired = self.store.retire_old_keys(self.rules.declaration.key_retention / 2).await?;
            if retired > 0 {
                tracing::warn!(charges = retired, "their keys are too old to be used again; they are looked up");
            }
            let uncertain = self.store.uncertain().await?;
            let figure = |count: i64| i32::try_from(count).map_or(f64::MAX, f64::from);
            metrics::gauge!("florin_charges_uncertain").set(figure(uncertain.charges));
            metrics::gauge!("florin_charges_uncertain_oldest_seconds").set(uncertain.oldest_seconds);
            metrics::gauge!("florin_charges_in_review").set(figure(uncertain.reviews));
            metrics::gauge!("florin_retries_planned").set(figure(uncertain.retries));
            Ok::<_, sqlx::Error>(Round::Done)
        })
        .await;
    }
}

fn count(slots: &OwnedSemaphorePermit) -> i64 {
    i64::try_from(slots.num_permits()).unwrap_or(i64::MAX)
}

/// Writes a batch of results and sets the alarms of what goes on. Where one of them cannot be written, each is alone.
async fn record(store: Store, alarm: Alarm, batch: Vec<Judged>) -> Vec<Result<(), Error>> {
    match record_repeatedly(&store, &alarm, &batch).await {
        Err(error) if pg::class(&error) == Class::Data && batch.len() > 1 => {
            let mut outcomes = Vec::with_capacity(batch.len());
            for judged in batch {
                outcomes.push(record_repeatedly(&store, &alarm, &[judged]).await.map_err(florin::ops::read_failed));
            }
            outcomes
        }
        outcome => {
            let outcome = outcome.map_err(florin::ops::read_failed);
            batch.iter().map(|_| outcome.clone()).collect()
        }
    }
}

async fn record_repeatedly(store: &Store, alarm: &Alarm, batch: &[Judged]) -> Result<(), sqlx::Error> {
    let mut tries = 1;
    loop {
        match store.record(batch).await {
            Ok(due) => {
                alarm.set(&due).await;
                return Ok(());
            }
            Err(error)
                if tries < WRITE_TRIES
                    && matches!(pg::class(&error), Class::Conflict | Class::Down | Class::LockTimeout) =>
            {
                tracing::debug!(%error, tries, "results are written again");
                tries += 1;
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
            Err(error) => return Err(error),
        }
    }
}
