//! A pod in two files: `state`, which says what there is, and `memory`, the pages that it refers to.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::codec::{checksum, decode, encode};
use drupe_appkernel_abi::{coded, Errno};
use drupe_appkernel_core::snapshot::state::{Saved, VERSION};
use drupe_appkernel_core::snapshot::{Foreign, Pages};
use drupe_appkernel_core::Host;
use drupe_appkernel_hostsys::{clock, files, memory as host_memory, stub};
use drupe_appkernel_vfs::overlay::Overlay;
use drupe_appkernel_vfs::tmpfs::{SavedTree, Tmpfs};
use drupe_appkernel_vfs::{
    pipe, Backing, Credentials, FdTable, FileSystem, HostFile, MountNamespace, OpenFile, OpenFlags,
};
use drupe_packets::{errno_name, Failure, Outcome};

use crate::containers::{refused, Containers, SavedContainer};
use crate::machine::Owned;
use crate::netsocket::{self, HostSocket};
use crate::pod::Pod;
use crate::streams::{Stream, Watched};

const MAGIC: &[u8; 8] = b"drupekrn";
/// Of `state`: far more than a pod of the most processes needs.
const STATE_MAX_BYTES: usize = 1 << 30;

coded! {
    /// All that `state` says. likeness: what must be the same where it goes on.
    struct SavedPod {
        likeness: Vec<(String, u64)>,
        containers: Vec<SavedContainer>,
        trees: Vec<SavedTree>,
        kernel: Saved,
    }
}

coded! {
    /// A standard stream: of which container's first process, which one.
    pub struct Role {
        pub container: u32,
        pub which: u8,
    }
}

coded! {
    /// An open file that leads out of the kernel.
    enum Outside {
        Stream(Role) = 0,
        /// A stream of a process from outside whose other end nobody has any more: the flags.
        Hung(u32) = 1,
        Socket(netsocket::SavedSocket) = 2,
    }
}

/// What programs know of the host by heart, and of this program: else they would go wrong later.
fn likeness(pod: &Pod) -> Vec<(String, u64)> {
    let system = pod.machine.system();
    let processor = [16, 26, 51].map(|key| clock::auxiliary(key).to_le_bytes()).concat();
    let all = [
        ("drupe's kernel", checksum(&[env!("CARGO_PKG_VERSION").as_bytes(), stub::code()].concat())),
        ("the host's vDSO", checksum(host_memory::vdso_code())),
        ("the processor", checksum(&[system.processor_flags.as_bytes(), &processor].concat())),
    ];
    all.map(|(name, sum)| (name.to_string(), sum)).into()
}

fn broken(what: &str) -> impl Fn(Errno) -> Failure + '_ {
    move |errno| Failure::new(&errno_name(errno.0), what)
}

/// Write a pod at rest down.
pub fn write(pod: &mut Pod, containers: &Containers, state: &OwnedFd, memory: OwnedFd) -> Outcome<()> {
    let (mut saved, namespaces) = containers.saved()?;
    let memory = Owned(memory);
    let mut pages = Pages::new(&memory);
    let trees = save_trees(&mut saved, &namespaces, &mut pages)?;
    let foreign = Saving { streams: containers.streams(&saved) };
    let kernel = pod.kernel.save(&namespaces, &foreign, &mut pages).map_err(|why| refused(&why))?;
    let body = encode(&SavedPod { likeness: likeness(pod), containers: saved, trees, kernel });
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(checksum(&body).to_le_bytes());
    bytes.extend(body);
    let mut done = 0;
    while done < bytes.len() {
        let count = files::write_at(state.as_fd(), done as u64, &bytes[done..]);
        done += count.map_err(|error| Failure::io("cannot write the state of the pod", &error))?;
    }
    Ok(())
}

/// File systems in memory, each once.
fn save_trees(
    saved: &mut [SavedContainer],
    namespaces: &[Arc<MountNamespace>],
    pages: &mut Pages<'_>,
) -> Outcome<Vec<SavedTree>> {
    let mut known: HashMap<usize, u32> = HashMap::new();
    let mut trees = Vec::new();
    for (container, namespace) in saved.iter_mut().zip(namespaces) {
        for (mount, number) in namespace.mounts().iter().zip(0..) {
            let upper = overlay(mount.file_system()).map(Overlay::upper);
            let Some(tmpfs) = in_memory(upper.unwrap_or(mount.file_system())) else { continue };
            let next = trees.len() as u32;
            let tree = *known.entry(std::ptr::from_ref(tmpfs) as usize).or_insert(next);
            if tree == next {
                let written = tmpfs.save(&mut |bytes| pages.append(bytes));
                trees.push(written.map_err(broken("cannot write files in memory"))?);
            }
            container.trees.push((number, tree));
        }
    }
    Ok(trees)
}

fn overlay(file_system: &Arc<dyn FileSystem>) -> Option<&Overlay> {
    file_system.as_any()?.downcast_ref()
}

fn in_memory(file_system: &Arc<dyn FileSystem>) -> Option<&Tmpfs> {
    file_system.as_any()?.downcast_ref()
}

struct Saving {
    streams: HashMap<u64, Role>,
}

impl Foreign for Saving {
    fn save(&self, file: &OpenFile) -> Result<Option<Vec<u8>>, String> {
        if file.downcast::<Stream>().is_some() {
            let role = self.streams.get(&file.id()).cloned();
            return Ok(Some(encode(&role.map_or(Outside::Hung(file.flags().0), Outside::Stream))));
        }
        let socket = file.downcast::<HostSocket>();
        Ok(socket.map(|socket| encode(&Outside::Socket(socket.save()))))
    }

    fn restore(&self, _: &[u8]) -> Result<Arc<OpenFile>, String> {
        Err(String::from("nothing is restored while a pod is saved"))
    }
}

/// Standard streams of the containers, in their order.
#[derive(Default)]
pub struct Streams(Vec<FdTable>);

impl Streams {
    pub fn add(&mut self, pod: &Pod, streams: [OwnedFd; 3]) -> Outcome<()> {
        let table = pod.streams(streams).map_err(broken("standard streams"))?;
        self.0.push(table);
        Ok(())
    }

    /// Of a container that has a terminal.
    pub fn add_none(&mut self) {
        self.0.push(FdTable::new());
    }

    fn get(&self, role: &Role) -> Option<&Arc<OpenFile>> {
        self.0.get(role.container as usize)?.get(role.which.into()).ok()
    }

    /// Those of one container, not held.
    pub fn of(&self, container: usize) -> [Weak<OpenFile>; 3] {
        let get = |which| self.get(&Role { container: container as u32, which });
        [0, 1, 2].map(|which| get(which).map(Arc::downgrade).unwrap_or_default())
    }
}

struct Restoring<'a> {
    streams: &'a Streams,
    watched: Arc<Watched>,
    now: drupe_appkernel_vfs::Timestamp,
}

impl Foreign for Restoring<'_> {
    fn save(&self, _: &OpenFile) -> Result<Option<Vec<u8>>, String> {
        Ok(None)
    }

    fn restore(&self, saved: &[u8]) -> Result<Arc<OpenFile>, String> {
        let credentials = Credentials::root();
        let context = drupe_appkernel_vfs::Context { credentials: &credentials, now: self.now, pid: 0, session: 0 };
        match decode(saved).ok_or("the snapshot is damaged: a file of the host")? {
            Outside::Stream(role) => {
                self.streams.get(&role).cloned().ok_or_else(|| String::from("the snapshot is damaged: a stream"))
            }
            Outside::Hung(flags) => {
                let (reads, writes) = pipe::pipe(&context, OpenFlags::default()).map_err(|errno| errno.to_string())?;
                Ok(if OpenFlags(flags).writes() { writes } else { reads })
            }
            Outside::Socket(socket) => netsocket::restore(&context, &self.watched, &socket),
        }
    }
}

/// The pages of a snapshot, read only: what is said to lie beyond their end does not.
struct Memory {
    file: Owned,
    size_bytes: u64,
}

impl HostFile for Memory {
    fn raw_fd(&self) -> i32 {
        self.file.raw_fd()
    }
}

impl Backing for Memory {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), Errno> {
        let end = offset.checked_add(out.len() as u64).filter(|end| *end <= self.size_bytes);
        end.ok_or(Errno::INVAL)?;
        self.file.read_at(offset, out)
    }

    fn write_at(&self, _: u64, _: &[u8]) -> Result<(), Errno> {
        Err(Errno::BADF)
    }

    fn set_size(&self, _: u64) -> Result<(), Errno> {
        Err(Errno::BADF)
    }

    fn punch(&self, _: u64, _: u64) -> Result<(), Errno> {
        Err(Errno::BADF)
    }

    fn as_host_file(self: Arc<Self>) -> Arc<dyn HostFile> {
        self
    }
}

/// A pod that was read and checked.
pub struct Made {
    pub containers: Vec<SavedContainer>,
    trees: Vec<Arc<Tmpfs>>,
    kernel: Saved,
    memory: Arc<dyn Backing>,
}

fn damaged(what: &str) -> Failure {
    Failure::new("EBADMSG", format!("the snapshot is damaged: {what}"))
}

/// Read what `write` has written. EOPNOTSUPP for another host or version, EBADMSG for what is damaged.
pub fn open(pod: &Pod, state: &OwnedFd, memory: OwnedFd) -> Outcome<Made> {
    let bytes = files::content(state, STATE_MAX_BYTES);
    let bytes = bytes.map_err(|error| Failure::io("cannot read the state of the pod", &error))?;
    let saved = parse(&bytes)?;
    for ((name, sum), (_, here)) in saved.likeness.iter().zip(likeness(pod)) {
        if *sum != here {
            return Err(refused(&format!("the snapshot was made elsewhere: {name} was another")));
        }
    }
    let size_bytes = files::stat(memory.as_fd(), b"");
    let size_bytes = size_bytes.map_err(|error| Failure::io("cannot read the pages of the pod", &error))?.size_bytes;
    let memory: Arc<dyn Backing> = Arc::new(Memory { file: Owned(memory), size_bytes });
    let backings = pod.machine.backings();
    let tree = |tree: &SavedTree| Tmpfs::restore(tree, Arc::clone(&backings), memory.as_ref());
    let trees = saved.trees.iter().map(tree).collect::<Result<Vec<_>, Errno>>();
    let trees = trees.map_err(broken("files in memory cannot be made again"))?;
    Ok(Made { containers: saved.containers, trees, kernel: saved.kernel, memory })
}

fn parse(bytes: &[u8]) -> Outcome<SavedPod> {
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged("it is none of the application kernel's"))?;
    let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(|| damaged("it is cut off"))?;
    let version = u32::from_le_bytes(*version);
    if version != VERSION {
        return Err(refused(&format!("the snapshot is of form {version}, this kernel reads {VERSION}")));
    }
    let (sum, body) = rest.split_first_chunk::<8>().ok_or_else(|| damaged("it is cut off"))?;
    if u64::from_le_bytes(*sum) != checksum(body) {
        return Err(damaged("its sum is wrong"));
    }
    decode(body).ok_or_else(|| damaged("it makes no sense"))
}

impl Made {
    /// The file systems in memory of a container, by their mounts.
    pub fn trees_of(&self, container: &SavedContainer) -> Outcome<HashMap<usize, Arc<Tmpfs>>> {
        let tree = |(mount, tree): &(u32, u32)| {
            let tree = self.trees.get(*tree as usize).ok_or_else(|| damaged("files that are not there"))?;
            Ok((*mount as usize, Arc::clone(tree)))
        };
        container.trees.iter().map(tree).collect()
    }

    /// The kernel goes on from there, once it is told to.
    pub fn restore(self, pod: &mut Pod, namespaces: &[Arc<MountNamespace>], streams: &Streams) -> Outcome<()> {
        let now = pod.now(drupe_appkernel_vfs::ClockId::Realtime);
        let foreign = Restoring { streams, watched: Arc::clone(&pod.machine.watched), now };
        let done = pod.kernel.restore(self.kernel, namespaces, &foreign, &self.memory);
        done.map_err(|why| refused(&why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(body: &[u8]) -> Vec<u8> {
        [&MAGIC[..], &VERSION.to_le_bytes(), &checksum(body).to_le_bytes(), body].concat()
    }

    fn refusal(bytes: &[u8]) -> String {
        parse(bytes).map(|_| ()).unwrap_err().message
    }

    #[test]
    fn what_is_no_snapshot_is_refused_by_name() {
        assert!(refusal(b"").contains("none of the application kernel's"));
        assert!(refusal(MAGIC).contains("cut off"));
        assert!(refusal(&[&MAGIC[..], &(VERSION + 1).to_le_bytes()].concat()).contains("is of form"));
        let mut changed = sealed(b"body");
        changed[20] ^= 1;
        assert!(refusal(&changed).contains("its sum is wrong"));
        assert!(refusal(&sealed(b"body")).contains("makes no sense"));
    }
}
