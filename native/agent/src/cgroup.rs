//! A container's cgroup (v2).

use crate::fault::{fault, Code, During, Reply};
use crate::service::own_cgroup;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use std::io::{ErrorKind, Read, Seek};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub const TOP: &str = "/sys/fs/cgroup";
const PARENT: &str = "drupe";
const EVENT_LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct Cgroup(PathBuf);

/// What config.json says for a container: below the top of the tree that the agent sees.
pub fn path_of(id: &str) -> String {
    format!("{}/{PARENT}/{id}", own_cgroup())
}

impl Cgroup {
    pub fn of(id: &str) -> Self {
        Cgroup(format!("{TOP}{}", path_of(id)).into())
    }

    /// Above those of all containers.
    pub fn all() -> Self {
        Cgroup(format!("{TOP}{}/{PARENT}", own_cgroup()).into())
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    /// Processes killed because memory was short, ever.
    pub fn oom_kills(&self) -> u64 {
        keyed(&self.read("memory.events"), "oom_kill")
    }

    /// SIGKILL for all in it.
    pub fn kill(&self) {
        let _ = std::fs::write(self.file("cgroup.kill"), "1");
    }

    pub fn pids(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        collect(&self.0, &mut pids);
        pids
    }

    /// Asks for it; `is_frozen` tells when it is so.
    pub fn freeze(&self, frozen: bool) -> Reply<()> {
        let value = if frozen { "1" } else { "0" };
        std::fs::write(self.file("cgroup.freeze"), value).during(|| "cannot write cgroup.freeze")
    }

    /// Waits until all of it stands still, or goes on.
    pub fn await_frozen(&self, frozen: bool, deadline: Option<Instant>) -> Reply<()> {
        self.await_event("frozen", frozen, deadline)
    }

    /// Waits for a word of cgroup.events, which is polled for POLLPRI. One that is not there any more has no processes.
    pub fn await_event(&self, word: &str, wanted: bool, deadline: Option<Instant>) -> Reply<()> {
        let mut file = match std::fs::File::open(self.file("cgroup.events")) {
            Err(error) if error.kind() == ErrorKind::NotFound && !wanted => return Ok(()),
            result => result.during(|| "cannot open cgroup.events")?,
        };
        let deadline = deadline.unwrap_or_else(|| Instant::now() + EVENT_LIMIT);
        loop {
            let mut text = String::new();
            file.rewind().and_then(|()| file.read_to_string(&mut text)).during(|| "cannot read cgroup.events")?;
            if (keyed(&text, word) == 1) == wanted {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(fault(
                    Code::DeadlineExceeded,
                    format!("the cgroup did not become {word}={} in time", u8::from(wanted)),
                ));
            }
            let _ = poll(&mut [PollFd::new(&file, PollFlags::PRI)], Timespec::try_from(left).ok().as_ref());
        }
    }

    /// With those that its processes made below it. Idempotent.
    pub fn remove(&self) -> std::io::Result<()> {
        remove_tree(&self.0)
    }
}

fn remove_tree(directory: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn collect(directory: &Path, pids: &mut Vec<u32>) {
    let text = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        collect(&entry.path(), pids);
    }
}

/// The number after `key` in a file of "key number" lines; 0 when it is not there.
pub fn keyed(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}
