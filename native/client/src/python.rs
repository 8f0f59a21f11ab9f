//! The Python program beside us: `python -P -m drupe` of the same directory.

use crate::home;
use drupe_sys::process;
use std::env;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

const CANNOT_START: u8 = 127;

/// Replaces this process; returns only the exit code of a failure to do so.
pub fn become_it() -> ExitCode {
    let Some(program) = home::directory().map(|home| home.join("python")) else {
        eprintln!("drupe: there is no Python beside this program\nhint: run scripts/setup.sh, or python -m drupe");
        return ExitCode::from(CANNOT_START);
    };
    // -P: the working directory is no place to import from
    let fixed = [program.clone().into_os_string(), "-P".into(), "-m".into(), "drupe".into()];
    let words = fixed.into_iter().chain(env::args_os().skip(1));
    let argv: Vec<CString> = words.filter_map(|word: OsString| CString::new(word.into_vec()).ok()).collect();
    let error = process::exec(&program, &argv);
    eprintln!("drupe: cannot start {}: {error}", program.display());
    ExitCode::from(CANNOT_START)
}
