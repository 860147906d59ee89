//! Child processes: each in a group of its own, with its output in a file, stopped gently and then firmly.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, User};

use crate::Result;

/// How long a process may take to stop before it is killed.
const PATIENCE: Duration = Duration::from_secs(15);

/// A running child. Stopped when it is dropped, unless it was let go.
#[derive(Debug)]
pub struct Process {
    /// What it is called.
    pub name: String,
    child: Option<Child>,
    log: PathBuf,
    stop_signal: Signal,
}

impl Process {
    /// Starts a command with its output in `<logs>/<name>.log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &str, mut command: Command, logs: &Path, stop_signal: Signal) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(|error| format!("{}: {error}", log.display()))?;
        let errors = file.try_clone().map_err(|error| format!("{}: {error}", log.display()))?;
        let child = command.stdin(std::process::Stdio::null()).stdout(file).stderr(errors).process_group(0).spawn();
        let child = child.map_err(|error| format!("{name} could not be started: {error}"))?;
        Ok(Self { name: name.to_owned(), child: Some(child), log, stop_signal })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Waits until `ready` holds.
    ///
    /// # Errors
    /// The process ended before, or took too long: with the end of its output.
    pub fn await_ready(&mut self, patience: Duration, ready: impl Fn() -> bool) -> Result<()> {
        let started = Instant::now();
        while !ready() {
            if let Some(child) = &mut self.child
                && let Ok(Some(status)) = child.try_wait()
            {
                self.child = None;
                return Err(format!("{} ended with {status}: {}", self.name, self.last_words()));
            }
            if started.elapsed() > patience {
                return Err(format!(
                    "{} was not ready within {} s: {}",
                    self.name,
                    patience.as_secs(),
                    self.last_words()
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(3)..].join(" / ")
    }

    /// Asks it to stop, then makes it.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        signal_to(child.id(), self.stop_signal);
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE {
            if let Ok(Some(_)) = child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Kills it at once: SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends it a signal and waits for its end.
    pub fn end_with(&mut self, signal: Signal) {
        if let Some(mut child) = self.child.take() {
            signal_to(child.id(), signal);
            let _ = child.wait();
        }
    }

    /// Leaves it running after this process.
    pub fn let_go(&mut self) {
        self.child = None;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Sends a signal to a process, if there still is one.
pub fn signal_to(pid: u32, signal: Signal) -> bool {
    i32::try_from(pid).is_ok_and(|pid| kill(Pid::from_raw(pid), signal).is_ok())
}

/// Whether a process is there.
#[must_use]
pub fn is_running(pid: u32) -> bool {
    i32::try_from(pid).is_ok_and(|pid| kill(Pid::from_raw(pid), None).is_ok())
}

/// Ports that the kernel gives to nobody by itself: one from its own range could be taken by any outgoing connection
/// before its server is up.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A port of the loopback that is free now, each time another.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let count = u32::from(PORTS.end - PORTS.start);
    // Processes begin at different places, so that two stacks do not race for the same ports.
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..count {
        let place = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % count;
        let port = PORTS.start + u16::try_from(place).unwrap_or_default();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(format!("no port between {} and {} is free on 127.0.0.1", PORTS.start, PORTS.end))
}

/// Whether something listens there.
#[must_use]
pub fn listens(port: u16) -> bool {
    std::net::TcpStream::connect_timeout(
        &std::net::SocketAddr::from(([127, 0, 0, 1], port)),
        Duration::from_millis(200),
    )
    .is_ok()
}

/// The unprivileged user that Postgres has to be run as when we are root, because Postgres refuses root.
///
/// # Errors
/// There is no such user.
pub fn unprivileged() -> Result<Option<(Uid, Gid)>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    let user = ["postgres", "nobody"].iter().find_map(|name| User::from_name(name).ok().flatten());
    let user = user.ok_or("Postgres refuses root, and there is neither a user postgres nor nobody to run it as")?;
    Ok(Some((user.uid, user.gid)))
}
