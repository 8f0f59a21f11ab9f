//! Where this installation's Python is.

use std::env;
use std::path::{Path, PathBuf};

/// The directory that we and the interpreter are in, behind all symbolic links.
pub fn directory() -> Option<PathBuf> {
    let beside = |program: PathBuf| program.parent().filter(|home| home.join("python").exists()).map(Path::to_owned);
    env::current_exe().ok().and_then(beside).or_else(|| called_program().and_then(beside))
}

/// What our own name leads to: for when /proc is missing, or the file was replaced under us.
fn called_program() -> Option<PathBuf> {
    let name = PathBuf::from(env::args_os().next()?);
    if name.components().count() > 1 {
        return name.canonicalize().ok();
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).find_map(|home| home.join(&name).canonicalize().ok())
}
