//! The host as the core wants it: clocks, randomness, memory files.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_core::census::uuid;
use drupe_appkernel_core::host::{Host, Processor};
use drupe_appkernel_hostsys::poll::Poller;
use drupe_appkernel_hostsys::{clock, files, memory};
use drupe_appkernel_vfs::devices::Entropy;
use drupe_appkernel_vfs::proc::System;
use drupe_appkernel_vfs::{Backing, Backings, ClockId, Context, Events, HostFile, OpenFile, Timestamp};

use crate::netsocket;
use crate::streams::Watched;

const AT_HWCAP: u64 = 16;
const AT_HWCAP2: u64 = 26;
const AT_MINSIGSTKSZ: u64 = 51;
const NETWORK_FILE_STEP: usize = 64 << 10;
const NETWORK_FILE_MAX: usize = 4 << 20;

pub fn errno(error: std::io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(Errno::IO.0))
}

/// This process's host. What is read of its /proc is opened when it is made: later no path of the host can be.
pub struct Machine {
    pub watched: Arc<Watched>,
    /// Memory that the pod may have; 0: all there is.
    memory_limit_bytes: AtomicU64,
    /// The host's /proc/self/net, if TCP and UDP are sockets of this process's network namespace; else they end within the pod.
    network: OnceLock<OwnedFd>,
    meminfo: OwnedFd,
    /// The host's /proc/cpuinfo, as it was.
    cpuinfo: String,
    processors: usize,
    memfds: Arc<Memfds>,
}

impl Machine {
    /// A limit of 0 is that of the cgroup.
    pub fn new(memory_limit_bytes: u64) -> std::io::Result<Machine> {
        let watched = Watched::new(Arc::new(Poller::new()?));
        let proc = proc_apart()?;
        let [meminfo, cpuinfo] = [&b"meminfo"[..], b"cpuinfo"].map(|name| files::below(proc.as_fd(), name, 0));
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let (meminfo, cpuinfo) = (meminfo?, files::text(cpuinfo?.as_fd()));
        let memory_limit_bytes = match memory_limit_bytes {
            0 => crate::cgroup::memory_limit_bytes(),
            limit => limit,
        };
        let total = total_bytes(&files::text(meminfo.as_fd()), memory_limit_bytes);
        let memfds = Memfds::new(total / 4 * 3);
        let network = OnceLock::new();
        let memory_limit_bytes = AtomicU64::new(memory_limit_bytes);
        Ok(Machine { watched, memory_limit_bytes, network, meminfo, cpuinfo, processors, memfds })
    }

    /// The limits of another cgroup than that in which it was made; 0 for none. Before anything of the pod is there.
    pub fn limit(&mut self, memory_bytes: u64, processors: usize) {
        let allowed = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        self.processors = if processors == 0 { allowed } else { allowed.min(processors) };
        self.limit_memory(memory_bytes);
    }

    /// The memory that the pod may have from now on; 0: all there is.
    pub fn limit_memory(&self, limit_bytes: u64) {
        self.memory_limit_bytes.store(limit_bytes, Ordering::Relaxed);
        let total = total_bytes(&files::text(self.meminfo.as_fd()), limit_bytes);
        self.memfds.limit_bytes.store(total / 4 * 3, Ordering::Relaxed);
    }

    /// Have the pod's network be the namespace that this process is in. While paths of the host can still be opened.
    pub fn join_network(&self) -> std::io::Result<()> {
        let proc = proc_apart()?;
        let own = format!("{}/net", std::process::id());
        let directory = files::below(proc.as_fd(), own.as_bytes(), libc::O_RDONLY | libc::O_DIRECTORY)?;
        let _joined = self.network.set(directory);
        Ok(())
    }

    /// The directory that /proc/net is read from, for whoever confines this process.
    pub fn network_directory(&self) -> Option<BorrowedFd<'_>> {
        self.network.get().map(AsFd::as_fd)
    }
}

/// The host's /proc as a tree that is mounted nowhere, and read-only: no ".." leads out of it, and who has one of its files
/// cannot change that one's mode or owner, whatever his rights on files are.
fn proc_apart() -> std::io::Result<OwnedFd> {
    let tree = drupe_sys::mount::open_tree(std::path::Path::new("/proc"));
    match tree.and_then(|tree| files::make_read_only(tree.as_fd()).map(|()| tree)) {
        // Not root, who has no such rights either; it will not be confined.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => files::open_path(b"/proc", libc::O_PATH),
        apart => apart,
    }
}

/// A file of the host that pages may be mapped from.
pub struct Owned(pub OwnedFd);

impl HostFile for Owned {
    fn raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

impl Backing for Owned {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < out.len() {
            match files::read_at(self.0.as_fd(), offset + filled as u64, &mut out[filled..]).map_err(errno)? {
                0 => {
                    out[filled..].fill(0);
                    break;
                }
                count => filled += count,
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < data.len() {
            done += files::write_at(self.0.as_fd(), offset + done as u64, &data[done..]).map_err(errno)?;
        }
        Ok(())
    }

    fn set_size(&self, size_bytes: u64) -> Result<()> {
        files::set_size(self.0.as_fd(), size_bytes).map_err(errno)
    }

    fn punch(&self, offset: u64, length_bytes: u64) -> Result<()> {
        files::punch(self.0.as_fd(), offset, length_bytes).map_err(errno)
    }

    fn as_host_file(self: Arc<Self>) -> Arc<dyn HostFile> {
        self
    }
}

/// Makes a memfd for each file that is mapped, and counts what all files in memory take: a part of the pod's memory, so that
/// who fills them is told so before the host ends the kernel that holds them.
pub struct Memfds {
    used_bytes: AtomicU64,
    limit_bytes: AtomicU64,
}

impl Memfds {
    fn new(limit_bytes: u64) -> Arc<Memfds> {
        Arc::new(Memfds { used_bytes: AtomicU64::new(0), limit_bytes: AtomicU64::new(limit_bytes) })
    }
}

impl Backings for Memfds {
    fn reserve(&self, size_bytes: u64) -> Result<()> {
        let limit_bytes = self.limit_bytes.load(Ordering::Relaxed);
        let fits = |used: u64| used.checked_add(size_bytes).filter(|&sum| sum <= limit_bytes);
        let done = self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        done.map(drop).map_err(|_| Errno::NOSPC)
    }

    fn release(&self, size_bytes: u64) {
        self.used_bytes.fetch_sub(size_bytes, Ordering::Relaxed);
    }

    fn create(&self) -> Result<Arc<dyn Backing>> {
        Ok(Arc::new(Owned(memory::memfd("drupe-file", 0).map_err(errno)?)))
    }
}

/// The host's random numbers.
pub struct HostEntropy;

impl Entropy for HostEntropy {
    fn fill(&self, out: &mut [u8]) {
        if clock::random(out).is_err() {
            // Never less than random: a program that got zeros would make keys of them.
            std::process::abort();
        }
    }
}

/// A figure of /proc/meminfo, in bytes.
fn meminfo(text: &str, key: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(key));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)).and_then(|word| word.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Memory that there is for a pod of this limit (0: none).
fn total_bytes(meminfo_text: &str, limit_bytes: u64) -> u64 {
    match (meminfo(meminfo_text, "MemTotal:"), limit_bytes) {
        (total, 0) => total,
        (total, limit) => total.min(limit),
    }
}

impl Host for Machine {
    fn now(&self, id: ClockId) -> Timestamp {
        let (seconds, nanoseconds) = clock::now(match id {
            ClockId::Realtime => clock::REALTIME,
            ClockId::Monotonic => clock::MONOTONIC,
            ClockId::Boottime => clock::BOOTTIME,
            ClockId::RealtimeCoarse => clock::REALTIME_COARSE,
            ClockId::MonotonicCoarse => clock::MONOTONIC_COARSE,
        });
        Timestamp::new(seconds, nanoseconds)
    }

    fn random(&self, out: &mut [u8]) {
        HostEntropy.fill(out);
    }

    fn ready(&self, word: u64, events: Events) {
        self.watched.ready(word, events);
    }

    fn pump(&self) -> bool {
        self.watched.pump()
    }

    fn socket(&self, context: &Context, domain: u64, kind: u64, protocol: u64) -> Option<Result<Arc<OpenFile>>> {
        self.network.get().map(|_| netsocket::open(context, &self.watched, domain, kind, protocol))
    }

    fn network_file(&self, name: &str) -> Option<Vec<u8>> {
        let file = files::open(self.network.get()?.as_fd(), name.as_bytes(), libc::O_RDONLY).ok()?;
        let (mut text, mut chunk) = (Vec::new(), vec![0; NETWORK_FILE_STEP]);
        while text.len() < NETWORK_FILE_MAX {
            match files::read(file.as_fd(), &mut chunk) {
                Ok(count) if count > 0 => text.extend(&chunk[..count]),
                _ => break,
            }
        }
        Some(text)
    }

    fn backings(&self) -> Arc<dyn Backings> {
        self.memfds.clone()
    }

    fn processor(&self) -> Processor {
        Processor {
            hwcap: clock::auxiliary(AT_HWCAP),
            hwcap2: clock::auxiliary(AT_HWCAP2),
            signal_stack_bytes: clock::auxiliary(AT_MINSIGSTKSZ).max(2048),
        }
    }

    fn memory_bytes(&self) -> (u64, u64) {
        let text = files::text(self.meminfo.as_fd());
        let free = meminfo(&text, "MemAvailable:");
        let limit = total_bytes(&text, self.memory_limit_bytes.load(Ordering::Relaxed));
        (limit, free.min(limit))
    }

    fn processors(&self) -> usize {
        self.processors
    }

    fn system(&self) -> System {
        let field = |key: &str| {
            let line = self.cpuinfo.lines().find(|line| line.starts_with(key));
            line.and_then(|line| line.split_once(": ")).map_or_else(String::new, |(_, value)| value.to_string())
        };
        let mut bytes = [0; 16];
        self.random(&mut bytes);
        let boot = self.now(ClockId::Realtime).seconds - self.now(ClockId::Boottime).seconds;
        System {
            release: String::from(drupe_appkernel_core::RELEASE),
            version: String::from(drupe_appkernel_core::VERSION),
            processors: self.processors() as u32,
            processor_model: field("model name"),
            processor_flags: field("flags"),
            processor_mhz: field("cpu MHz").split('.').next().and_then(|n| n.parse().ok()).unwrap_or(0),
            boot_seconds: boot,
            boot_id: uuid(bytes),
            ..System::default()
        }
    }

    fn log(&self, line: &str) {
        eprintln!("drupe-appkernel: {line}");
    }
}
