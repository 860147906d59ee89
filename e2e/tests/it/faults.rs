//! Faults under load, each with a stack of its own, and a clean audit after each: nothing lost, nothing charged twice.

use std::time::Duration;

use cli::arguments::LoadOptions;
use cli::audit::{Acknowledged, audit};
use cli::connection::Connection;
use cli::load::{Progress, pay_all};
use e2e::{Platform, keyed, order};
use xtask::services::Options;
use xtask::stack::Stack;

use crate::shared::ALONE;

/// Orders paid under faults: some 900 payment orders.
const ORDERS: u32 = 300;

/// Pays through a stack, does harm once a part of it is under way, and audits.
async fn survives(harm: impl FnOnce(&mut Stack) + Send + 'static) {
    let _alone = ALONE.lock().await;
    let platform = tokio::task::spawn_blocking(|| Platform::start(Options::default())).await.expect("it starts");
    let connection = platform.connection();
    let before = Progress::read(&connection).await.expect("the databases answer");
    let paying = {
        let connection = connection.clone();
        tokio::spawn(async move { pay_all(&connection, &load(ORDERS), &before).await })
    };
    // Wait for a level, not for a time: the harm has to come in the middle.
    let at_work = || async {
        let progress = Progress::read(&connection).await.ok()?;
        (progress.captured() > i64::from(ORDERS) / 4).then_some(())
    };
    e2e::eventually("a quarter of the orders", at_work).await;
    let platform = tokio::task::spawn_blocking(move || {
        let mut platform = platform;
        harm(&mut platform.stack);
        platform
    });
    let platform = platform.await.expect("the harm is done");
    let acknowledged = paying.await.expect("no panic").expect("every order is paid");
    assert_eq!(acknowledged.len(), ORDERS as usize);
    let report = audit(&connection, &acknowledged, Duration::from_secs(60)).await.expect("the auditor reads");
    if !report.clean {
        report.show();
        panic!("the audit found violations");
    }
    prove_balances(&connection);
    tokio::task::spawn_blocking(move || drop(platform)).await.expect("it stops");
}

/// Runs the rebuild as an operator would: it proves that cache = table = fold of the journal.
fn prove_balances(connection: &Connection) {
    let address = |name: &str| connection.address(name).expect("the stack names it").to_owned();
    let mut rebuild = std::process::Command::new(xtask::project::program("balance-svc"));
    rebuild
        .arg("rebuild")
        .env_clear()
        .env("FLORIN_GRPC_LISTEN", "127.0.0.1:0")
        .env("FLORIN_OPS_LISTEN", "127.0.0.1:0")
        .env("FLORIN_DATABASE_URL", address("FLORIN_BALANCE_SVC_DATABASE"))
        .env("FLORIN_NATS_URL", address("FLORIN_NATS_URL"))
        .env("FLORIN_REDIS_URL", address("FLORIN_REDIS_URL"))
        .env("FLORIN_LEDGER_SVC", address("FLORIN_LEDGER_SVC"));
    let output = rebuild.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn load(orders: u32) -> LoadOptions {
    LoadOptions { orders, seed: 3, token: "tok_random".to_owned(), concurrency: 16, report: None, patience: 90 }
}

/// SIGKILL, and a moment later a new process.
fn kill(name: &'static str) -> impl FnOnce(&mut Stack) + Send {
    move |stack| {
        stack.kill(name);
        std::thread::sleep(Duration::from_millis(500));
        stack.start_service(name).expect("it starts again");
    }
}

#[tokio::test]
async fn payment_api_is_killed() {
    survives(kill("payment-api")).await;
}

#[tokio::test]
async fn psp_worker_is_killed() {
    survives(kill("psp-worker")).await;
}

#[tokio::test]
async fn ledger_svc_is_killed() {
    survives(kill("ledger-svc")).await;
}

#[tokio::test]
async fn balance_svc_is_killed() {
    survives(kill("balance-svc")).await;
}

#[tokio::test]
async fn redis_is_flushed() {
    survives(|stack| {
        for _ in 0..10 {
            stack.flush_redis().expect("Redis answers");
            std::thread::sleep(Duration::from_millis(100));
        }
    })
    .await;
}

#[tokio::test]
async fn nats_is_restarted() {
    survives(|stack| {
        stack.kill("nats");
        std::thread::sleep(Duration::from_millis(500));
        stack.start_nats().expect("NATS starts again");
    })
    .await;
}

#[tokio::test]
async fn postgres_crashes() {
    survives(|stack| {
        stack.crash_postgres();
        std::thread::sleep(Duration::from_millis(500));
        stack.start_postgres().expect("Postgres recovers");
    })
    .await;
}

/// Every call outlives its deadline: all outcomes are learnt by look-ups, while calls are still being processed.
#[tokio::test]
async fn a_psp_that_is_slower_than_every_deadline_charges_nobody_twice() {
    let _alone = ALONE.lock().await;
    let options = Options { scenario: "DEGRADED".to_owned(), ..Options::default() };
    let platform = tokio::task::spawn_blocking(|| Platform::start(options)).await.expect("it starts");
    let connection = platform.connection();
    let before = Progress::read(&connection).await.expect("the databases answer");
    let acknowledged = pay_all(&connection, &load(40), &before).await.expect("every order is paid");
    let report = audit(&connection, &acknowledged, Duration::from_secs(60)).await.expect("the auditor reads");
    if !report.clean {
        report.show();
        panic!("the audit found violations");
    }
    tokio::task::spawn_blocking(move || drop(platform)).await.expect("it stops");
}

/// Accepting needs Postgres and nothing else; what was accepted is finished when the others are back.
#[tokio::test]
async fn payments_are_accepted_while_everything_else_is_down() {
    let _alone = ALONE.lock().await;
    let platform = tokio::task::spawn_blocking(|| {
        let mut platform = Platform::start(Options { scenario: "BEST".to_owned(), ..Options::default() });
        for part in ["psp-worker", "ledger-svc", "balance-svc", "psp-simulator", "redis", "nats"] {
            platform.stack.kill(part);
        }
        platform
    });
    let platform = platform.await.expect("it starts");
    let connection = platform.connection();
    let mut acknowledged = Vec::new();
    for number in 0..20 {
        let request = keyed(&format!("outage-{number}"), order(&format!("outage-{number}"), "tok_random", 100));
        let answer = connection.payments().unwrap().create_payment(request).await.expect("accepted").into_inner();
        let total = answer.total.unwrap();
        let payment_id = answer.payment_id;
        acknowledged.push(Acknowledged { payment_id, currency: total.currency_code, total: total.minor_units });
    }
    let platform = tokio::task::spawn_blocking(move || {
        let mut platform = platform;
        platform.stack.start_nats().expect("NATS starts");
        platform.stack.start_redis().expect("Redis starts");
        for service in ["psp-worker", "ledger-svc", "balance-svc"] {
            platform.stack.start_service(service).expect("it starts");
        }
        // The PSP comes back last: until then every call is refused, and none of them counts.
        std::thread::sleep(Duration::from_millis(1_500));
        platform.stack.start_psp().expect("the PSP starts");
        platform
    });
    let platform = platform.await.expect("all are back");
    let all_succeeded = || async {
        let progress = Progress::read(&connection).await.ok()?;
        (progress.captured() == 20 && progress.is_complete(20)).then_some(())
    };
    e2e::eventually("the end of all payments", all_succeeded).await;
    let report = audit(&connection, &acknowledged, Duration::from_secs(30)).await.expect("the auditor reads");
    if !report.clean {
        report.show();
        panic!("the audit found violations");
    }
    tokio::task::spawn_blocking(move || drop(platform)).await.expect("it stops");
}

/// Two processes of every service: keys, claims, leases and watches hold across them.
#[tokio::test]
async fn two_replicas_of_everything_act_as_one() {
    let _alone = ALONE.lock().await;
    let started = tokio::task::spawn_blocking(|| {
        let mut platform = Platform::start(Options { scenario: "BEST".to_owned(), ..Options::default() });
        let second = platform.stack.start_replica("payment-api").expect("it starts");
        for service in ["psp-worker", "ledger-svc", "balance-svc"] {
            platform.stack.start_replica(service).expect("it starts");
        }
        (platform, second)
    });
    let (platform, second) = started.await.expect("all start");
    let connection = platform.connection();
    let mut addresses = platform.stack.addresses.clone();
    addresses.insert("FLORIN_PAYMENT_API".to_owned(), second);
    let other = Connection::of(addresses);

    // One key at both: one payment, whoever is first; and each waits for what either commits.
    let mut acknowledged = Vec::new();
    for number in 0..20 {
        let request = || {
            let mut request = order(&format!("replicas-{number}"), "tok_random", 100);
            request.wait = Some(prost_types::Duration { seconds: 5, nanos: 0 });
            keyed(&format!("replicas-{number}"), request)
        };
        let (mut here, mut there) = (connection.payments().unwrap(), other.payments().unwrap());
        let (first, second) = tokio::join!(here.create_payment(request()), there.create_payment(request()));
        let (first, second) = (first.expect("answered").into_inner(), second.expect("answered").into_inner());
        assert_eq!(first.payment_id, second.payment_id);
        assert!(first.complete_time.is_some() && second.complete_time.is_some(), "both see the end");
        let total = first.total.unwrap();
        acknowledged.push(Acknowledged {
            payment_id: first.payment_id,
            currency: total.currency_code,
            total: total.minor_units,
        });
    }
    // Counting begins when nothing is on its way any more.
    let settled = || async { Progress::read(&connection).await.ok().filter(|progress| progress.is_complete(20)) };
    let before = e2e::eventually("the end of these", settled).await;
    acknowledged.extend(pay_all(&connection, &load(ORDERS), &before).await.expect("every order is paid"));
    let report = audit(&connection, &acknowledged, Duration::from_secs(30)).await.expect("the auditor reads");
    if !report.clean {
        report.show();
        panic!("the audit found violations");
    }
    prove_balances(&connection);
    tokio::task::spawn_blocking(move || drop(platform)).await.expect("it stops");
}
