//! Health: which parts a service needs, whether they answer, and the ops port that tells (`/livez`, `/readyz`,
//! `/metrics`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;

/// How often dependencies are asked.
const PROBE_PERIOD: Duration = Duration::from_millis(500);
/// How long an answer may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether one part answers.
#[derive(Debug, Clone)]
pub struct Dependency {
    /// Whether the service is not ready without it.
    pub required: bool,
    /// What is wrong; `None` while it answers.
    pub trouble: Option<String>,
}

/// What the service knows about itself.
#[derive(Debug, Clone)]
pub struct Health {
    dependencies: Arc<Mutex<BTreeMap<String, Dependency>>>,
    draining: Arc<watch::Sender<bool>>,
    ready: Arc<watch::Sender<bool>>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            dependencies: Arc::default(),
            draining: Arc::new(watch::Sender::new(false)),
            ready: Arc::new(watch::Sender::new(false)),
        }
    }
}

impl Health {
    /// Notes that a part is needed; it counts as down until it answered.
    pub fn needs(&self, name: &str, required: bool) {
        let trouble = Some("not reached yet".to_owned());
        self.lock().insert(name.to_owned(), Dependency { required, trouble });
    }

    /// Notes what a probe found, and says so once in the log when it changes.
    pub fn report(&self, name: &str, result: Result<(), String>) {
        let mut dependencies = self.lock();
        let Some(dependency) = dependencies.get_mut(name) else { return };
        match (&dependency.trouble, &result) {
            (Some(_), Ok(())) => tracing::info!(dependency = name, "{name} answers"),
            (None, Err(trouble)) => tracing::warn!(dependency = name, "{name} does not answer: {trouble}"),
            (Some(before), Err(trouble)) if before != trouble => {
                tracing::warn!(dependency = name, "{name} does not answer: {trouble}");
            }
            _ => {}
        }
        metrics::gauge!("florin_dependency_up", "dependency" => name.to_owned()).set(if result.is_ok() {
            1.0
        } else {
            0.0
        });
        dependency.trouble = result.err();
        let ready = !*self.draining.borrow() && dependencies.values().all(|d| !d.required || d.trouble.is_none());
        drop(dependencies);
        self.ready.send_replace(ready);
    }

    /// Says not ready, from now on.
    pub fn drain(&self) {
        self.draining.send_replace(true);
        self.ready.send_replace(false);
    }

    /// Whether the service can do its work.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Tells when readiness changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Every part with its state.
    #[must_use]
    pub fn dependencies(&self) -> Vec<(String, Dependency)> {
        self.lock().iter().map(|(name, dependency)| (name.clone(), dependency.clone())).collect()
    }

    /// Asks a part again and again, for as long as the process lives.
    pub async fn watch<F, Fut>(self, name: &'static str, probe: F)
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<(), String>>,
    {
        let mut tick = tokio::time::interval(PROBE_PERIOD);
        loop {
            tick.tick().await;
            let answer = tokio::time::timeout(PROBE_TIMEOUT, probe()).await;
            self.report(name, answer.unwrap_or_else(|_| Err("no answer within 2 s".to_owned())));
        }
    }

    /// Like [`Health::watch`], until `stop`.
    pub async fn watch_until<F, Fut>(self, name: &'static str, stop: tokio_util::sync::CancellationToken, probe: F)
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<(), String>>,
    {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.watch(name, probe) => {}
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Dependency>> {
        self.dependencies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ops port's routes.
    pub fn routes(&self, metrics: PrometheusHandle) -> axum::Router {
        let health = self.clone();
        axum::Router::new()
            .route("/livez", get(async || "alive\n"))
            .route("/readyz", get(async move || health.answer()))
            .route("/metrics", get(async move || metrics.render()))
    }

    fn answer(&self) -> (StatusCode, String) {
        let lines = self.dependencies().into_iter().map(|(name, dependency)| {
            let need = if dependency.required { "required" } else { "optional" };
            let state = dependency.trouble.unwrap_or_else(|| "up".to_owned());
            format!("{name} ({need}): {state}\n")
        });
        let body: String = lines.collect();
        if self.is_ready() {
            (StatusCode::OK, format!("ready\n{body}"))
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{body}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_ready_when_what_it_requires_answers() {
        let health = Health::default();
        health.needs("postgres", true);
        health.needs("redis", false);
        assert!(!health.is_ready());
        health.report("postgres", Ok(()));
        assert!(health.is_ready(), "Redis is optional");
        health.report("postgres", Err("refused".into()));
        assert!(!health.is_ready());
        assert!(health.answer().1.contains("postgres (required): refused"));
        health.report("postgres", Ok(()));
        health.drain();
        health.report("postgres", Ok(()));
        assert!(!health.is_ready(), "draining is for good");
    }
}
