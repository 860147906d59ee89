//! Stopping in order. There is no global token: the host owns one of these and hands out the parts.

use tokio_util::sync::CancellationToken;

/// The stages of a stop, each a token that is cancelled in its turn.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Somebody asked the process to stop.
    pub requested: CancellationToken,
    /// Watches end, new calls are refused.
    pub draining: CancellationToken,
    /// Consumers and claimers take no more work.
    pub intake: CancellationToken,
    /// The relay publishes what is left and gives its lease back.
    pub relay: CancellationToken,
}

impl Shutdown {
    /// Asks for a stop on SIGTERM and SIGINT.
    ///
    /// # Errors
    /// The signals cannot be listened to.
    pub fn on_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let requested = self.requested.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
                _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            }
            requested.cancel();
        });
        Ok(())
    }
}
