//! What is known and held of one workload process.

use crate::foreign::{Kind, Pending};
use crate::log::Log;
use crate::protocol::{Fds, Outcome};
use crate::watch::{Source, Watch};
use drupe_sys::epoll::Epoll;
use drupe_sys::fd::set_nonblocking;
use drupe_sys::process::{Ended, Pid};
use serde_json::{json, Value};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// The keeper's end of stdout, stderr or a pty.
pub struct Output {
    pub watch: Watch,
    pub ended: bool,
}

/// The keeper's end of stdin (or, a duplicate of, a pty).
pub struct Input {
    pub watch: Watch,
    pub pending: Pending,
    /// Close once nothing is pending.
    pub closing: bool,
}

/// The keeper's ends of a task's stdio.
#[derive(Default)]
pub struct Ends {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub tty: Option<OwnedFd>,
}

impl Ends {
    pub fn take_from(fds: &mut Fds) -> Ends {
        Ends { stdin: fds.take("stdin"), stdout: fds.take("stdout"), stderr: fds.take("stderr"), tty: fds.take("tty") }
    }
}

#[derive(Clone, Debug)]
pub struct Exit {
    pub ended: Ended,
    pub at: f64,
    /// The process is gone, and nobody can say how it ended.
    pub unknown: bool,
}

pub struct Task {
    pub name: String,
    pub pid: Pid,
    pub pidfd: Option<Watch>,
    pub started_at: f64,
    /// The io mode: pipes, tty, fds, null.
    pub mode: &'static str,
    pub tty: bool,
    /// Its output is not read yet (op `flow`).
    pub hold: bool,
    /// stdout (or the pty) and stderr.
    pub outputs: [Option<Output>; 2],
    pub stdin: Option<Input>,
    /// The workload's ends of its streams, until whoever runs it takes them (op `take_streams`).
    pub theirs: Fds,
    /// It has a stdin whose closing was not announced yet.
    pub had_stdin: bool,
    pub log: Option<Log>,
    pub exit_file: Option<String>,
    pub exit: Option<Exit>,
    pub exited: Option<Instant>,
    pub last_byte: Instant,
    /// The exit was written down and announced.
    pub reported: bool,
    pub attachments: Vec<u64>,
    pub drain_timer: bool,
    /// When an adopted process (no child of ours) was first seen to have ended.
    pub ended_seen: Option<Instant>,
}

impl Task {
    pub fn new(name: String, pid: Pid, log: Option<Log>, exit_file: Option<String>, started_at: f64) -> Task {
        Task {
            name,
            pid,
            pidfd: None,
            started_at,
            mode: "null",
            tty: false,
            hold: false,
            outputs: [None, None],
            stdin: None,
            theirs: Fds::default(),
            had_stdin: false,
            log,
            exit_file,
            exit: None,
            exited: None,
            last_byte: Instant::now(),
            reported: false,
            attachments: Vec::new(),
            drain_timer: false,
            ended_seen: None,
        }
    }

    /// Takes the ends of its stdio into the event loop.
    pub fn connect(&mut self, epoll: &Rc<Epoll>, id: u64, ends: Ends) -> io::Result<()> {
        self.tty = ends.tty.is_some();
        let input = match &ends.tty {
            Some(tty) => Some(tty.try_clone()?),
            None => ends.stdin,
        };
        if let Some(fd) = input {
            set_nonblocking(&fd)?;
            let watch = Watch::new(epoll, fd, Source::TaskStdin, id);
            self.had_stdin = true;
            self.stdin = Some(Input { watch, pending: Pending::default(), closing: false });
        }
        let sources = [Source::TaskStdout, Source::TaskStderr];
        for (index, fd) in [ends.tty.or(ends.stdout), ends.stderr].into_iter().enumerate() {
            if let Some(fd) = fd {
                set_nonblocking(&fd)?;
                let watch = Watch::new(epoll, fd, sources[index], id);
                self.outputs[index] = Some(Output { watch, ended: false });
            }
        }
        Ok(())
    }

    /// Duplicates of what it holds: whoever has them keeps the workload from SIGPIPE and SIGHUP.
    pub fn escrow(&self) -> io::Result<Fds> {
        let mut fds = Fds::default();
        if let (Some(input), false) = (&self.stdin, self.tty) {
            fds.push("stdin", input.watch.file.as_fd().try_clone_to_owned()?);
        }
        let names = if self.tty { ["tty", ""] } else { ["stdout", "stderr"] };
        for (name, output) in names.into_iter().zip(&self.outputs) {
            if let Some(output) = output {
                fds.push(name, output.watch.file.as_fd().try_clone_to_owned()?);
            }
        }
        for (name, fd) in &self.theirs.0 {
            fds.push(name, fd.try_clone()?);
        }
        if let Some(pidfd) = &self.pidfd {
            fds.push("pidfd", pidfd.file.as_fd().try_clone_to_owned()?);
        }
        Ok(fds)
    }

    /// What `adopt` must be told to take it over, besides its descriptors.
    pub fn adoption(&self) -> Value {
        let mut fields = json!({"pid": self.pid, "started_at": self.started_at, "io": {"mode": self.mode}});
        if let Some(log) = &self.log {
            fields["log"] = log.to_json();
        }
        if let Some(path) = &self.exit_file {
            fields["exit_file"] = json!(path);
        }
        fields
    }

    pub fn drained(&self) -> bool {
        self.outputs.iter().flatten().all(|output| output.ended)
    }

    /// Writes bytes to its stdin; drops stdin when the task has closed it.
    pub fn write_stdin(&mut self, data: &[u8]) {
        let Some(input) = &mut self.stdin else { return };
        let result = input.pending.push(&input.watch.file, Kind::File, data);
        self.after_stdin_write(result);
    }

    pub fn flush_stdin(&mut self) {
        let Some(input) = &mut self.stdin else { return };
        let result = input.pending.flush(&input.watch.file, Kind::File);
        self.after_stdin_write(result);
    }

    fn after_stdin_write(&mut self, result: io::Result<()>) {
        let Some(input) = &mut self.stdin else { return };
        let waits = !input.pending.is_empty();
        let watched = input.watch.set(waits.then_some(drupe_sys::epoll::OUT));
        // A pty is closed only with its task: its other half is the output.
        let gone = result.is_err() && !self.tty;
        if gone || watched.is_err() || (input.closing && !waits && !self.tty) {
            self.stdin = None;
        }
    }

    /// Whether bytes for stdin still wait for room.
    pub fn stdin_full(&self) -> bool {
        self.stdin.as_ref().is_some_and(|input| !input.pending.is_empty())
    }

    pub fn exit_record(&self) -> Option<Value> {
        let exit = self.exit.as_ref()?;
        let mut record = json!({
            "task": self.name, "pid": self.pid, "code": exit.ended.code, "signal": exit.ended.signal,
            "core": exit.ended.core, "at": exit.at,
        });
        if exit.unknown {
            record["unknown"] = json!(true);
        }
        if let Some(log) = self.log.as_ref().filter(|log| log.dropped > 0) {
            record["log_dropped"] = json!(log.dropped);
        }
        Some(record)
    }

    /// Writes the exit record beside its place and renames it: a reader sees all of it or nothing.
    pub fn write_exit_file(&self, record: &Value) -> io::Result<()> {
        let Some(path) = &self.exit_file else { return Ok(()) };
        let temporary = format!("{path}.new");
        fs::write(&temporary, format!("{record}\n"))?;
        fs::rename(&temporary, path)
    }

    pub fn summary(&self) -> Value {
        let mut summary = json!({
            "task": self.name, "pid": self.pid, "running": !self.reported, "started_at": self.started_at,
        });
        if self.reported {
            summary["exit"] = self.exit_record().unwrap_or(Value::Null);
        }
        if let Some(log) = self.log.as_ref().filter(|log| log.dropped > 0) {
            summary["log_dropped"] = json!(log.dropped);
        }
        summary
    }
}

/// The ends of pipes made for a new task: ours, and those for the helper's stdio.
pub fn make_pipes(with_stdin: bool) -> Outcome<(Ends, [OwnedFd; 3])> {
    let failed = |error: io::Error| crate::protocol::Failure::io("cannot make a pipe", &error);
    let (stdin_read, stdin_write) = if with_stdin {
        let (read, write) = drupe_sys::fd::pipe().map_err(failed)?;
        (read, Some(write))
    } else {
        (dev_null(true)?, None)
    };
    let (stdout_read, stdout_write) = drupe_sys::fd::pipe().map_err(failed)?;
    let (stderr_read, stderr_write) = drupe_sys::fd::pipe().map_err(failed)?;
    let ends = Ends { stdin: stdin_write, stdout: Some(stdout_read), stderr: Some(stderr_read), tty: None };
    Ok((ends, [stdin_read, stdout_write, stderr_write]))
}

/// A null device of the keeper's own: crun gives the streams of a container to the root of its user namespace, and the
/// host's /dev/null is everybody's. Who may not make devices can give none away either.
pub fn dev_null(readable: bool) -> Outcome<OwnedFd> {
    let mut options = fs::OpenOptions::new();
    options.read(readable).write(!readable);
    let own = own_null().and_then(|path| options.open(path));
    let file = own.or_else(|_| options.open("/dev/null"));
    file.map(OwnedFd::from).map_err(|error| crate::protocol::Failure::io("cannot open /dev/null", &error))
}

/// A path to it: another one once somebody has changed whose it is, or its mode.
fn own_null() -> io::Result<String> {
    static KEPT: Mutex<Option<fs::File>> = Mutex::new(None);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let untouched = |null: &fs::File| null.metadata().is_ok_and(|it| (it.mode() & 0o7777, it.uid()) == (0o666, 0));
    let null = match kept.take().filter(untouched) {
        Some(null) => null,
        None => drupe_sys::fd::own_null()?.into(),
    };
    Ok(format!("/proc/self/fd/{}", kept.insert(null).as_raw_fd()))
}
