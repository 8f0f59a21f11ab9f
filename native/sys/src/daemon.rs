//! From a program in the foreground to a daemon, of which there is one at a time.

use crate::{fd, process};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// How the foreground process is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    Serves,
    /// Another one holds the lock.
    Locked,
}

/// The daemon's line to the process that waits for it.
pub struct Starter(OwnedFd);

impl Starter {
    /// It serves now: the foreground process ends.
    pub fn ready(&self) -> io::Result<()> {
        self.say("ready")?;
        // The foreground waits for the end of this pipe, which forked children must not inherit either.
        fd::replace(&OpenOptions::new().write(true).open("/dev/null")?, &self.0)
    }

    /// It will not serve.
    pub fn failed(&self, why: &io::Error) {
        let _ = self.say(&why.to_string());
    }

    fn say(&self, words: &str) -> io::Result<()> {
        File::from(self.0.try_clone()?).write_all(words.as_bytes())
    }
}

/// Takes the lock (flock(2), held as long as the daemon lives) and runs `serve` in a process of its own (double fork,
/// setsid(2)), which ends with its result. Returns once that says that it is ready; its error, when it says one.
pub fn begin(lock: &Path, serve: impl FnOnce(&Starter) -> i32) -> io::Result<Begun> {
    let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(lock);
    let held = opened.map_err(context(format!("cannot open {}", lock.display())))?;
    match fd::flock(&held) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Begun::Locked),
        result => result?,
    }
    let (ready, tell) = fd::pipe()?;
    let starter = Starter(tell);
    let child = process::fork_child(|| {
        let forked = process::setsid().and_then(|()| process::fork_child(|| serve(&starter)));
        i32::from(forked.is_err())
    })?;
    drop(starter);
    process::wait_for(child)?;
    let mut words = String::new();
    File::from(ready).read_to_string(&mut words)?;
    match words.as_str() {
        "ready" => Ok(Begun::Serves),
        "" => Err(io::Error::other("it died while it started")),
        words => Err(io::Error::other(words.to_string())),
    }
}

/// Standard input and output become /dev/null, and standard error the end of a file, if one is given.
pub fn detach_stdio(log: Option<&Path>) -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let log = match log {
        Some(path) => OpenOptions::new().create(true).append(true).mode(0o640).open(path)?,
        None => null.try_clone()?,
    };
    fd::redirect(&null, 0)?;
    fd::redirect(&null, 1)?;
    fd::redirect(&log, 2)
}

/// Puts before an error what was tried.
pub fn context(what: String) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}
