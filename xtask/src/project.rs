//! Where things are: the repository, its `.dev` folder, the built programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;

/// The repository's root.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The git-ignored folder of tools and running stacks.
///
/// # Errors
/// It cannot be made.
pub fn dev() -> Result<PathBuf> {
    let dev = root().join(".dev");
    fs::create_dir_all(&dev).map_err(|error| format!("{}: {error}", dev.display()))?;
    Ok(dev)
}

/// Where cargo puts programs.
#[must_use]
pub fn target() -> PathBuf {
    let set = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    set.unwrap_or_else(|| root().join("target"))
}

/// A built program.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    target().join("debug").join(name)
}

/// Builds the programs of the stack.
///
/// # Errors
/// They do not build.
pub fn build() -> Result<()> {
    // The whole workspace, so that these dependencies are built with the features that the tests build them with.
    let mut command = Command::new("cargo");
    command.current_dir(root()).args(["build", "--locked", "--workspace"]);
    run(&mut command)
}

/// Runs a command to its end.
///
/// # Errors
/// It cannot be started, or it failed.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command.status().map_err(|error| format!("{shown}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{shown} ended with {status}")) }
}
