//! Making what stands for a workload, and what the daemon needs to make the workload itself.

use crate::act;
use crate::control::text;
use crate::stand_in;
use drupe_sys::terminal::{self, Settings};
use drupe_sys::{mount, process};
use serde_json::Value;
use std::env;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A stand-in that we made. fds: what the daemon is to have. undo: what removes what it is in. stays: its sandbox is
/// there. terminal: what ours was before. signals: those that we are sent from now on are for it.
pub struct Standing {
    pid: process::Pid,
    pidfd: OwnedFd,
    fds: Vec<(String, OwnedFd)>,
    undo: Vec<String>,
    stays: bool,
    terminal: Option<Settings>,
    signals: OwnedFd,
}

impl Standing {
    /// Its sandbox is there: nothing is undone from now on.
    pub fn stays(&mut self) {
        self.stays = true;
    }

    /// What goes to the daemon with the next call.
    pub fn handed_on(&mut self) -> Vec<(String, OwnedFd)> {
        std::mem::take(&mut self.fds)
    }

    /// We are done with it. failed: it has nothing to stand for, unless it stays.
    pub fn leave(self, failed: bool) {
        if let Some(settings) = &self.terminal {
            terminal::put_back(0, settings);
        }
        if !failed || self.stays {
            return;
        }
        // The first error counts. Where the program fails, too, the process goes at least.
        if !self.undo.is_empty() {
            let mut undo = Command::new(&self.undo[0]);
            let _ =
                undo.args(&self.undo[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
        let _ = process::pidfd_send_signal(&self.pidfd, libc::SIGKILL);
    }
}

/// Our "/", for the daemon to look up our paths from.
pub fn root() -> io::Result<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    Ok(fs::OpenOptions::new().read(true).custom_flags(flags).open("/")?.into())
}

/// Makes a stand-in as the answer says, and opens what is to be handed on with it.
pub fn stand_in(answer: &Value, standing: &mut Option<Standing>) -> Result<(), String> {
    let wanted = &answer["stand_in"];
    if env::var("LISTEN_FDS").is_ok_and(|count| !matches!(count.as_str(), "" | "0")) {
        return Err("LISTEN_FDS: descriptors of the caller's are not handed on by this kind of sandbox".into());
    }
    try_pid(text(wanted, "pid_file"))?;
    // First: nothing else may have its numbers.
    stand_in::lay_out().map_err(|error| format!("cannot lay out descriptors: {error}"))?;
    let trees = open_trees(wanted)?;
    let terminal = terminal::settings(0).filter(|_| wanted["raw"] == true);
    let pid = if act::words(&wanted["make"]).is_empty() {
        let begun = stand_in::begin(text(wanted, "console"));
        begun.map_err(|error| format!("cannot start a process that stands for another: {error}"))?.id() as process::Pid
    } else {
        made(wanted, answer)?
    };
    let pidfd = process::pidfd_open(pid).map_err(|error| format!("process {pid}: {error}"))?;
    let own = pidfd.try_clone().map_err(|error| error.to_string())?;
    let signals = process::signal_fd(&process::forwardable_signals()).map_err(|error| error.to_string())?;
    let undo = act::with_texts(&act::words(&wanted["undo"]), answer)?;
    *standing = Some(Standing { pid, pidfd, fds: trees, undo, stays: false, terminal, signals });
    if let Some(standing) = standing {
        standing.fds.push(("stand_in".to_owned(), own));
    }
    Ok(())
}

/// As the first process of a container, which a program makes on our own streams.
fn made(wanted: &Value, answer: &Value) -> Result<process::Pid, String> {
    act::hide_cgroup(answer)?;
    if wanted["reap"] == true {
        process::set_child_subreaper().map_err(|error| format!("cannot become a subreaper: {error}"))?;
    }
    let argv = act::with_texts(&act::words(&wanted["make"]), answer)?;
    let program = act::present(&argv[0], text(answer, "fallback"));
    let done = Command::new(program).args(&argv[1..]).status();
    let done = done.map_err(|error| format!("cannot start {program}: {error}"))?;
    if !done.success() {
        return Err(String::new()); // it has said why
    }
    pid_of(Path::new(text(wanted, "status"))).map_err(|error| format!("{}: {error}", text(wanted, "status")))
}

fn pid_of(status: &Path) -> io::Result<process::Pid> {
    let found: Value = serde_json::from_slice(&fs::read(status)?)?;
    found["pid"].as_i64().map(|pid| pid as process::Pid).ok_or(io::ErrorKind::InvalidData.into())
}

fn open_trees(wanted: &Value) -> Result<Vec<(String, OwnedFd)>, String> {
    let paths = wanted["trees"].as_object().into_iter().flatten();
    let open = |(name, path): (&String, &Value)| {
        let path = path.as_str().unwrap_or_default();
        let tree = mount::open_tree(Path::new(path)).map_err(|error| format!("{path} cannot be mounted: {error}"))?;
        Ok((name.clone(), tree))
    };
    paths.map(open).collect()
}

/// Waits until it ends; returns its exit code.
pub fn wait(standing: &Option<Standing>) -> Result<u8, String> {
    let standing = standing.as_ref().ok_or("there is nothing to wait for")?;
    stand_in::wait(standing.pid, &standing.pidfd, &standing.signals).map_err(|error| format!("cannot wait: {error}"))
}

/// Its number, for whoever asked for it in a file: all of it at once, as runc does.
pub fn write_pid(path: &str, standing: &Option<Standing>) -> Result<(), String> {
    let Some(standing) = standing.as_ref().filter(|_| !path.is_empty()) else { return Ok(()) };
    let told = fs::write(beside(path), standing.pid.to_string()).and_then(|()| fs::rename(beside(path), path));
    told.map_err(|error| format!("cannot write {path}: {error}"))
}

/// Whether it can be told there, before there is anything that would have to go again.
fn try_pid(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Ok(());
    }
    let tried = match Path::new(path).is_dir() {
        true => Err(io::Error::from_raw_os_error(libc::EISDIR)),
        false => fs::write(beside(path), "").and_then(|()| fs::remove_file(beside(path))),
    };
    tried.map_err(|error| format!("cannot write {path}: {error}"))
}

/// Where a file is written before it is in its place.
fn beside(path: &str) -> PathBuf {
    let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
    Path::new(path).with_file_name(format!(".{name}.{}", std::process::id()))
}
