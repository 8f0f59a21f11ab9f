//! A daemon that died is started again, while containerd waits for something: its tasks end, and nobody else would tell.
//!
//! How a daemon is started is in a script, which it writes when it comes. One that is told by its user to end removes it; one
//! that got a signal leaves it under another name, for the next call. One that systemd keeps writes none.

use drupe_sys::process::{self, Pid, Spawn};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SCRIPT: &str = "wake";
const WHEN_CALLED: &str = "wake-when-called";
/// Whoever has ended it may be about to start it.
const FIRST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(60);
const REAPED_WITHIN: Duration = Duration::from_secs(1);

pub struct Wake {
    script: PathBuf,
    when_called: PathBuf,
    due: Option<Instant>,
    pause: Duration,
    child: Option<Pid>,
}

impl Wake {
    pub fn new(dir: &Path) -> Wake {
        let (script, when_called) = (dir.join(SCRIPT), dir.join(WHEN_CALLED));
        Wake { script, when_called, due: None, pause: FIRST, child: None }
    }

    pub fn daemon_left(&mut self) {
        self.pause = FIRST;
        self.due = self.script.exists().then(|| Instant::now() + self.pause);
    }

    /// Somebody asks something while there is no daemon: one that had left in order is asked for again.
    pub fn called(&mut self) {
        if self.due.is_none() && fs::rename(&self.when_called, &self.script).is_ok() {
            self.daemon_left();
        }
    }

    pub fn daemon_came(&mut self) {
        self.due = None;
    }

    /// When `look` has something to do.
    pub fn next(&self) -> Option<Instant> {
        self.due.into_iter().chain(self.child.map(|_| Instant::now() + REAPED_WITHIN)).min()
    }

    /// Starts a daemon when it is time; it connects when it serves. wanted: somebody waits for it.
    pub fn look(&mut self, wanted: bool) {
        while let Some((pid, _)) = process::reap() {
            self.child = self.child.filter(|child| *child != pid);
        }
        if self.due.is_none_or(|due| due > Instant::now()) {
            return;
        }
        self.pause = (2 * self.pause).min(LONGEST);
        self.due = Some(Instant::now() + self.pause);
        if wanted && self.child.is_none() && self.script.exists() {
            match self.start() {
                Ok(pid) => self.child = Some(pid),
                Err(error) => eprintln!("drupe-relay: cannot start a daemon: {error}"),
            }
        }
    }

    fn start(&self) -> io::Result<Pid> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let (null, log) = (null.as_fd(), io::stderr());
        let env: Vec<String> = std::env::vars_os()
            .filter_map(|(name, value)| Some(format!("{}={}", name.to_str()?, value.to_str()?)))
            .collect();
        process::spawn(&Spawn {
            argv: &["/bin/sh".into(), self.script.to_string_lossy().into_owned()],
            env: &env,
            cwd: None,
            stdio: [null, null, log.as_fd()],
            pass: &[],
            ahead: false,
            join: &[],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_left_in_order_is_left_alone_and_one_that_died_is_not() {
        let dir = std::env::temp_dir().join(format!("drupe-wake-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let mut wake = Wake::new(&dir);
        wake.daemon_left();
        wake.called();
        assert!(wake.next().is_none());
        fs::write(dir.join(WHEN_CALLED), "").unwrap();
        wake.daemon_left();
        assert!(wake.next().is_none());
        wake.called();
        assert!(wake.next().is_some());
        wake.daemon_came();
        fs::write(dir.join(SCRIPT), format!("echo started >{}/told", dir.display())).unwrap();
        wake.daemon_left();
        assert!(wake.next().is_some());
        for wanted in [false, true] {
            wake.due = Some(Instant::now());
            wake.look(wanted);
            assert_eq!(wake.child.is_some(), wanted);
        }
        while wake.child.is_some() {
            wake.look(true);
        }
        assert_eq!(fs::read_to_string(dir.join("told")).unwrap(), "started\n");
        wake.daemon_came();
        assert!(wake.next().is_none());
        fs::remove_dir_all(&dir).unwrap();
    }
}
