//! One stack: started whole, its parts killed and started again one by one, stopped whole.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid};
use sqlx::{AssertSqlSafe, Connection as _};

use crate::Result;
use crate::process::{Process, free_port, listens, unprivileged};
use crate::project::program;
use crate::services::{Options, Place, SERVICES};
use crate::tools::Tools;

/// How long a part may take to be ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a second process of a service is called after its name.
const REPLICA: &str = "-2";

/// A running stack.
#[derive(Debug)]
pub struct Stack {
    /// Where its parts are, as the `florin` command reads them.
    pub addresses: BTreeMap<String, String>,
    /// The services' places.
    pub places: Vec<Place>,
    options: Options,
    tools: Tools,
    folder: PathBuf,
    postgres_folder: PathBuf,
    ports: Ports,
    processes: BTreeMap<String, Process>,
    /// Left running after this process.
    let_go: bool,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    postgres: u16,
    nats: u16,
    redis: u16,
    psp: u16,
}

impl Stack {
    /// Starts Postgres, NATS and Redis with fresh data in `folder`.
    ///
    /// # Errors
    /// A part cannot be found or started.
    pub fn base(folder: &Path, options: Options) -> Result<Self> {
        let tools = Tools::find()?;
        for name in ["logs", "nats", "redis", "psp"] {
            let path = folder.join(name);
            fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        let ports = Ports { postgres: free_port()?, nats: free_port()?, redis: free_port()?, psp: free_port()? };
        let places = SERVICES.into_iter().map(Place::free).collect::<Result<Vec<_>>>()?;
        let mut addresses = BTreeMap::from([
            ("FLORIN_POSTGRES".to_owned(), format!("127.0.0.1:{}", ports.postgres)),
            ("FLORIN_NATS_URL".to_owned(), format!("nats://127.0.0.1:{}", ports.nats)),
            ("FLORIN_REDIS_URL".to_owned(), format!("redis://127.0.0.1:{}", ports.redis)),
            ("FLORIN_PSP_URL".to_owned(), format!("http://127.0.0.1:{}", ports.psp)),
            ("FLORIN_PSP_KEY".to_owned(), "sk_test_florin".to_owned()),
            ("FLORIN_LOGS".to_owned(), folder.join("logs").display().to_string()),
        ]);
        for place in &places {
            addresses.insert(place.variable.to_owned(), format!("http://127.0.0.1:{}", place.grpc));
            addresses.insert(format!("{}_OPS", place.variable), format!("http://127.0.0.1:{}", place.ops));
            let url = format!("postgres://florin:florin@127.0.0.1:{}/{}", ports.postgres, place.database());
            addresses.insert(format!("{}_DATABASE", place.variable), url);
        }
        let postgres_folder = postgres_folder(folder)?;
        let mut stack = Self {
            addresses,
            places,
            options,
            tools,
            folder: folder.to_owned(),
            postgres_folder,
            ports,
            processes: BTreeMap::new(),
            let_go: false,
        };
        stack.init_postgres()?;
        stack.start_postgres()?;
        stack.start_nats()?;
        stack.start_redis()?;
        Ok(stack)
    }

    /// Starts a whole stack, services and PSP included, and waits until all are ready.
    ///
    /// # Errors
    /// A part cannot be started.
    pub fn start(folder: &Path, options: Options) -> Result<Self> {
        let mut stack = Self::base(folder, options)?;
        stack.create_databases()?;
        stack.start_psp()?;
        for place in stack.places.clone() {
            stack.spawn_service(&place)?;
        }
        for place in stack.places.clone() {
            stack.await_service(place.name)?;
        }
        Ok(stack)
    }

    /// Folder of the logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// Process ids by name.
    #[must_use]
    pub fn pids(&self) -> BTreeMap<String, u32> {
        self.processes.iter().filter_map(|(name, process)| Some((name.clone(), process.pid()?))).collect()
    }

    /// Folders to remove when the stack has been stopped.
    #[must_use]
    pub fn folders(&self) -> Vec<PathBuf> {
        vec![self.folder.clone(), self.postgres_folder.clone()]
    }

    /// Kills a part at once: SIGKILL.
    pub fn kill(&mut self, name: &str) {
        if let Some(mut process) = self.processes.remove(name) {
            process.kill();
        }
    }

    /// Stops a part as an operator would.
    pub fn stop_part(&mut self, name: &str) {
        self.processes.remove(name);
    }

    /// Starts a service again and waits until it is ready.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_service(&mut self, name: &str) -> Result<()> {
        let place = self.places.iter().find(|place| place.name == name).cloned();
        self.spawn_service(&place.ok_or_else(|| format!("{name} is no service"))?)?;
        self.await_service(name)
    }

    /// Starts a second process of a service beside the first, and waits until it is ready. Answers its address.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_replica(&mut self, name: &str) -> Result<String> {
        let place = self.places.iter().find(|place| place.name == name).cloned();
        let place = place.ok_or_else(|| format!("{name} is no service"))?;
        let place = Place { grpc: free_port()?, ops: free_port()?, ..place };
        let replica = format!("{name}{REPLICA}");
        let command = place.command(&self.addresses, &self.options);
        let mut process = Process::start(&replica, command, &self.logs(), Signal::SIGTERM)?;
        process.await_ready(PATIENCE, || is_ready(place.ops))?;
        self.processes.insert(replica, process);
        Ok(format!("http://127.0.0.1:{}", place.grpc))
    }

    fn spawn_service(&mut self, place: &Place) -> Result<()> {
        let command = place.command(&self.addresses, &self.options);
        let process = Process::start(place.name, command, &self.logs(), Signal::SIGTERM)?;
        self.processes.insert(place.name.to_owned(), process);
        Ok(())
    }

    fn await_service(&mut self, name: &str) -> Result<()> {
        let ops = self.places.iter().find(|place| place.name == name).map_or(0, |place| place.ops);
        let process = self.processes.get_mut(name).ok_or_else(|| format!("{name} is not running"))?;
        process.await_ready(PATIENCE, || is_ready(ops))
    }

    fn init_postgres(&self) -> Result<()> {
        let data = self.postgres_folder.join("data");
        let mut initdb = self.as_postgres(Command::new(self.tools.postgres.join("initdb")))?;
        initdb
            .args([
                "--username=florin",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
                "--data-checksums",
                "--pgdata",
            ])
            .arg(&data);
        let output = initdb.output().map_err(|error| format!("initdb: {error}"))?;
        if !output.status.success() {
            return Err(format!("initdb: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        Ok(())
    }

    /// Starts Postgres and waits until it answers.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_postgres(&mut self) -> Result<()> {
        let mut command = self.as_postgres(Command::new(self.tools.postgres.join("postgres")))?;
        command.arg("-D").arg(self.postgres_folder.join("data"));
        let fsync = if self.options.fsync { "on" } else { "off" };
        for setting in [
            format!("port={}", self.ports.postgres),
            "listen_addresses=127.0.0.1".to_owned(),
            "unix_socket_directories=".to_owned(),
            "max_connections=200".to_owned(),
            "shared_buffers=256MB".to_owned(),
            "max_wal_size=4GB".to_owned(),
            format!("fsync={fsync}"),
            "data_sync_retry=off".to_owned(),
        ] {
            command.arg("-c").arg(setting);
        }
        // SIGINT is Postgres' fast shutdown.
        let mut process = Process::start("postgres", command, &self.logs(), Signal::SIGINT)?;
        let port = self.ports.postgres;
        process.await_ready(PATIENCE, || listens(port) && answers(port))?;
        self.processes.insert("postgres".to_owned(), process);
        Ok(())
    }

    /// Crashes Postgres as `pg_ctl stop -m immediate` does.
    pub fn crash_postgres(&mut self) {
        if let Some(mut process) = self.processes.remove("postgres") {
            process.end_with(Signal::SIGQUIT);
        }
    }

    /// Starts NATS with its stored streams and waits until it answers.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_nats(&mut self) -> Result<()> {
        let mut command = Command::new(&self.tools.nats);
        command
            .args(["--addr", "127.0.0.1", "--port", &self.ports.nats.to_string(), "--jetstream", "--store_dir"])
            .arg(self.folder.join("nats"));
        let mut process = Process::start("nats", command, &self.logs(), Signal::SIGTERM)?;
        let port = self.ports.nats;
        process.await_ready(PATIENCE, || listens(port))?;
        self.processes.insert("nats".to_owned(), process);
        Ok(())
    }

    /// Starts Redis, without a memory of its own, and waits until it answers.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_redis(&mut self) -> Result<()> {
        let mut command = Command::new(&self.tools.redis);
        command
            .args([
                "--bind",
                "127.0.0.1",
                "--port",
                &self.ports.redis.to_string(),
                "--save",
                "",
                "--appendonly",
                "no",
                "--dir",
            ])
            .arg(self.folder.join("redis"));
        let mut process = Process::start("redis", command, &self.logs(), Signal::SIGTERM)?;
        let port = self.ports.redis;
        process.await_ready(PATIENCE, || listens(port))?;
        self.processes.insert("redis".to_owned(), process);
        Ok(())
    }

    /// Empties Redis.
    ///
    /// # Errors
    /// It does not answer.
    pub fn flush_redis(&self) -> Result<()> {
        use std::io::{Read as _, Write as _};
        let trouble = |error: std::io::Error| format!("redis: {error}");
        let mut connection = std::net::TcpStream::connect(("127.0.0.1", self.ports.redis)).map_err(trouble)?;
        connection.write_all(b"FLUSHALL\r\n").map_err(trouble)?;
        let mut answer = [0; 5];
        connection.read_exact(&mut answer).map_err(trouble)?;
        if answer == *b"+OK\r\n" { Ok(()) } else { Err(format!("redis: {}", String::from_utf8_lossy(&answer))) }
    }

    /// Starts the PSP simulator with its book and waits until it answers.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_psp(&mut self) -> Result<()> {
        let mut command = Command::new(program("psp-simulator"));
        let Options { scenario, seed, rates, .. } = &self.options;
        command
            .args([
                "--listen",
                &format!("127.0.0.1:{}", self.ports.psp),
                "--scenario",
                scenario,
                "--seed",
                &seed.to_string(),
                "--rates",
                rates,
                "--data",
            ])
            .arg(self.folder.join("psp"));
        let mut process = Process::start("psp-simulator", command, &self.logs(), Signal::SIGTERM)?;
        let port = self.ports.psp;
        process.await_ready(PATIENCE, || listens(port))?;
        self.processes.insert("psp-simulator".to_owned(), process);
        Ok(())
    }

    /// Makes the services' databases, each with an owner's and a worker's role.
    fn create_databases(&self) -> Result<()> {
        for place in &self.places {
            create_database(self.ports.postgres, &place.database())?;
        }
        Ok(())
    }

    /// Leaves everything running after this process.
    pub fn let_go(mut self) {
        self.let_go = true;
        self.processes.values_mut().for_each(Process::let_go);
    }

    fn as_postgres(&self, mut command: Command) -> Result<Command> {
        if let Some((uid, gid)) = unprivileged()? {
            command.uid(uid.as_raw()).gid(gid.as_raw()).current_dir("/");
        }
        Ok(command)
    }

    /// Stops everything in the order of need: services first, what they need last.
    pub fn stop(&mut self) {
        self.processes.retain(|name, _| !name.ends_with(REPLICA));
        for name in
            ["payment-api", "psp-worker", "ledger-svc", "balance-svc", "psp-simulator", "redis", "nats", "postgres"]
        {
            self.processes.remove(name);
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if self.let_go {
            return;
        }
        self.stop();
        // Only the database's folder can be elsewhere; the stack's own belongs to whoever named it.
        if self.postgres_folder != self.folder.join("postgres") {
            let _ = fs::remove_dir_all(&self.postgres_folder);
        }
    }
}

/// Where Postgres keeps its data: in the stack's folder, unless we are root. Then it runs as somebody else, who may not
/// be able to reach that folder.
fn postgres_folder(folder: &Path) -> Result<PathBuf> {
    let trouble = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let Some((uid, gid)) = unprivileged()? else {
        let path = folder.join("postgres");
        return fs::create_dir_all(&path).map(|()| path.clone()).map_err(|error| trouble(&path, error));
    };
    let made = tempfile::Builder::new()
        .prefix("florin-postgres-")
        .tempdir_in("/var/tmp")
        .map_err(|error| format!("/var/tmp: {error}"))?;
    let path = made.keep();
    hand_over(&path, uid, gid).map_err(|error| trouble(&path, error))?;
    Ok(path)
}

fn hand_over(path: &Path, uid: Uid, gid: Gid) -> std::io::Result<()> {
    chown(path, Some(uid.as_raw()), Some(gid.as_raw()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Makes a database with its worker's role.
///
/// # Errors
/// Postgres refuses.
pub fn create_database(port: u16, name: &str) -> Result<()> {
    execute(port, &[format!("create role {name}_app login password 'florin'"), format!("create database {name}")])
}

/// Runs statements as the owner of everything.
fn execute(port: u16, statements: &[String]) -> Result<()> {
    let url = format!("postgres://florin:florin@127.0.0.1:{port}/postgres");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut connection = sqlx::PgConnection::connect(&url).await.map_err(|error| format!("postgres: {error}"))?;
        for statement in statements {
            sqlx::raw_sql(AssertSqlSafe(statement.as_str()))
                .execute(&mut connection)
                .await
                .map_err(|error| format!("{statement}: {error}"))?;
        }
        connection.close().await.map_err(|error| error.to_string())
    })
}

/// Whether Postgres takes statements: it listens before it does.
fn answers(port: u16) -> bool {
    execute(port, &["select 1".to_owned()]).is_ok()
}

/// Whether a service says that it is ready.
fn is_ready(ops: u16) -> bool {
    use std::io::{Read as _, Write as _};
    let Ok(mut connection) = std::net::TcpStream::connect(("127.0.0.1", ops)) else { return false };
    let _ = connection.set_read_timeout(Some(Duration::from_secs(1)));
    let request = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut answer = String::new();
    connection.write_all(request.as_bytes()).is_ok()
        && connection.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 200")
}
