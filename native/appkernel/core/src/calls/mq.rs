//! POSIX message queues (mq_overview(7)): mq_open(2) and its kin. One set of names for a pod; a queue is a file.

use std::collections::BTreeMap;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::cred::{MAY_READ, MAY_WRITE};
use drupe_appkernel_vfs::{anonymous, ClockId, Credentials, File, OpenFile, OpenFlags};

use super::Args;
use crate::encode;
use crate::kernel::{Done, Kernel};
use crate::mqueue::{Attributes, MessageQueue, Notice};
use crate::signal::{Info, COUNT};
use crate::task::Tid;

const LIMIT_MSGQUEUE: usize = 12;
/// All of a user's, whatever its limit is: they lie in the kernel's memory.
const MOST_BYTES: u64 = 16 << 20;
const NAME_MAX: usize = 255;
const PRIORITIES: u32 = 32_768;
const SIGEV_SIGNAL: u32 = 0;
const SIGEV_NONE: u32 = 1;
const SI_MESGQ: i32 = -3;
const CAP_FOWNER: u32 = 3;
const CAP_SYS_RESOURCE: u32 = 24;

/// Queues by their names, and fs.mqueue.*.
pub struct MessageQueues {
    pub(crate) named: BTreeMap<Vec<u8>, Arc<MessageQueue>>,
    pub(crate) queues_max: u64,
    pub(crate) most: Attributes,
    pub(crate) usual: Attributes,
}

impl Default for MessageQueues {
    fn default() -> Self {
        let usual = Attributes { messages: 10, message_bytes: 8192 };
        MessageQueues { named: BTreeMap::new(), queues_max: 256, most: usual, usual }
    }
}

/// A name as the C library gives it, without its slash. ENOENT, EACCES, ENAMETOOLONG.
fn name(kernel: &Kernel, tid: Tid, address: u64) -> Result<Vec<u8>> {
    let name = kernel.path_text(tid, address)?;
    match name.as_slice() {
        [] => Err(Errno::NOENT),
        [b'.'] | [b'.', b'.'] => Err(Errno::ACCES),
        name if name.contains(&b'/') => Err(Errno::ACCES),
        name if name.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
        _ => Ok(name),
    }
}

/// Whether `name` can let a name through.
pub(crate) fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= NAME_MAX && !name.contains(&b'/') && name != b"." && name != b".."
}

/// What a new queue is to hold. EINVAL.
fn attributes(kernel: &Kernel, tid: Tid, address: u64, by: &Credentials) -> Result<Attributes> {
    let known = &kernel.message_queues;
    let most = if by.capable(CAP_SYS_RESOURCE) { Attributes::HARD } else { known.most };
    if address == 0 {
        return Ok(Attributes {
            messages: known.usual.messages.min(most.messages),
            message_bytes: known.usual.message_bytes.min(most.message_bytes),
        });
    }
    let [_, messages, message_bytes] = kernel.get_words(tid, address)?;
    let new = Attributes { messages, message_bytes };
    new.fit(most).then_some(new).ok_or(Errno::INVAL)
}

/// ENOSPC: there are as many as may be; EMFILE: the user's would hold more than RLIMIT_MSGQUEUE.
fn check_room(kernel: &Kernel, tid: Tid, new: Attributes, by: &Credentials) -> Result<()> {
    let known = &kernel.message_queues;
    if known.named.len() as u64 >= known.queues_max && !by.capable(CAP_SYS_RESOURCE) {
        return Err(Errno::NOSPC);
    }
    let of_user = known.named.values().filter(|queue| queue.owner().uid == by.uid);
    let taken: u64 = of_user.map(|queue| queue.attributes.bytes()).sum();
    let limit = kernel.process(tid)?.limits[LIMIT_MSGQUEUE].0.min(MOST_BYTES);
    (taken.saturating_add(new.bytes()) <= limit).then_some(()).ok_or(Errno::MFILE)
}

fn find_or_make(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Arc<MessageQueue>> {
    let [address, flags, mode, attr, ..] = *args;
    let (name, by) = (name(kernel, tid, address)?, kernel.credentials(tid)?);
    let flags = OpenFlags(flags as u32);
    if let Some(known) = kernel.message_queues.named.get(&name) {
        if flags.has(OpenFlags::CREAT) && flags.has(OpenFlags::EXCL) {
            return Err(Errno::EXIST);
        }
        let wanted = if flags.reads() { MAY_READ } else { 0 } | if flags.writes() { MAY_WRITE } else { 0 };
        by.check(&known.owner(), wanted)?;
        return Ok(Arc::clone(known));
    }
    if !flags.has(OpenFlags::CREAT) {
        return Err(Errno::NOENT);
    }
    let new = attributes(kernel, tid, attr, &by)?;
    check_room(kernel, tid, new, &by)?;
    let seat = kernel.seat(tid)?;
    let made = MessageQueue::new(new, &by, mode as u32 & 0o777 & !seat.umask, seat.now);
    kernel.message_queues.named.insert(name, Arc::clone(&made));
    Ok(made)
}

pub fn mq_open(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const KEPT: u32 = OpenFlags::NONBLOCK | 3;
    let flags = args[1] as u32;
    if flags & 3 == 3 {
        return Err(Errno::INVAL);
    }
    let file: Arc<dyn File> = find_or_make(kernel, tid, args)?;
    let open = OpenFlags(flags & KEPT);
    let file = kernel.with_context(tid, |context| Ok(anonymous::open(context, file, "mqueue", open)))?;
    kernel.install(tid, file, true).map(|fd| Done::Value(fd.into()))
}

pub fn mq_unlink(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (name, by) = (name(kernel, tid, args[0])?, kernel.credentials(tid)?);
    let owner = kernel.message_queues.named.get(&name).ok_or(Errno::NOENT)?.owner();
    if owner.uid != by.uid && !by.capable(CAP_FOWNER) {
        return Err(Errno::PERM);
    }
    drop(kernel.message_queues.named.remove(&name));
    Ok(Done::Value(0))
}

/// The queue behind a descriptor. EBADF.
fn queue(file: &OpenFile) -> Result<&MessageQueue> {
    file.downcast::<MessageQueue>().ok_or(Errno::BADF)
}

/// The deadline of a call that may wait: an absolute time of the wall clock. EINVAL, EFAULT.
fn deadline(kernel: &mut Kernel, tid: Tid, address: u64) -> Result<Option<u64>> {
    if address == 0 {
        return Ok(None);
    }
    let time = kernel.get_time(tid, address)?;
    Ok(Some(match kernel.pending(tid)?.deadline_ns {
        Some(known) => known,
        None => kernel.timers.to_monotonic_ns(ClockId::Realtime, time),
    }))
}

/// Wait for a change of the queue. EAGAIN, ETIMEDOUT.
fn wait(kernel: &mut Kernel, tid: Tid, file: &OpenFile, receives: bool, deadline: Option<u64>) -> Result<Done> {
    if file.is_nonblocking() {
        return Err(Errno::AGAIN);
    }
    if kernel.is_over(tid) {
        return Err(Errno::TIMEDOUT);
    }
    let registration = queue(file)?.register(receives, kernel.waker(tid));
    kernel.pending(tid)?.registrations.push(registration);
    kernel.wait_until(tid, deadline)
}

pub fn mq_timedsend(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, address, size, priority, timeout, _] = *args;
    if priority as u32 >= PRIORITIES {
        return Err(Errno::INVAL);
    }
    let deadline = deadline(kernel, tid, timeout)?;
    let file = kernel.file(tid, fd)?;
    let queue = queue(&file)?;
    if !file.flags().writes() {
        return Err(Errno::BADF);
    }
    if size > queue.attributes.message_bytes {
        return Err(Errno::MSGSIZE);
    }
    let bytes = kernel.get_bytes(tid, address, size as usize)?;
    if !queue.has_room() {
        return wait(kernel, tid, &file, false, deadline);
    }
    if let Some(notice) = queue.send(priority as u32, bytes) {
        tell(kernel, tid, notice)?;
    }
    Ok(Done::Value(0))
}

/// A message has come to a queue that was empty: the process that asked for it is told, once.
fn tell(kernel: &mut Kernel, tid: Tid, notice: Notice) -> Result<()> {
    let process = kernel.process(tid)?;
    let mut info = Info::from_process(notice.signal, SI_MESGQ, process.pid, process.ids.uid);
    info.fields[1] = notice.value;
    if notice.signal != 0 {
        kernel.send_to_process(notice.pid, info);
    }
    Ok(())
}

pub fn mq_timedreceive(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, address, size, priority_at, timeout, _] = *args;
    let deadline = deadline(kernel, tid, timeout)?;
    let file = kernel.file(tid, fd)?;
    let queue = queue(&file)?;
    if !file.flags().reads() {
        return Err(Errno::BADF);
    }
    if size < queue.attributes.message_bytes {
        return Err(Errno::MSGSIZE);
    }
    let Some((priority, bytes)) = queue.receive() else {
        return wait(kernel, tid, &file, true, deadline);
    };
    kernel.put_if(tid, priority_at, &priority.to_le_bytes())?;
    kernel.put(tid, address, &bytes)?;
    Ok(Done::Value(bytes.len() as i64))
}

pub fn mq_notify(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, event, ..] = *args;
    let pid = kernel.pid(tid);
    let notice = match event {
        0 => None,
        address => {
            let [value, second] = kernel.get_words(tid, address)?;
            let (signal, how) = (second as i32, (second >> 32) as u32);
            match how {
                SIGEV_NONE => Some(Notice { pid, signal: 0, value }),
                SIGEV_SIGNAL if (1..=COUNT).contains(&signal) => Some(Notice { pid, signal, value }),
                _ => return Err(Errno::INVAL),
            }
        }
    };
    let file = kernel.file(tid, fd)?;
    let queue = queue(&file)?;
    let lives = |pid: u32| kernel.tasks.processes.get(&pid).is_some_and(|process| process.exit.is_none());
    queue.notify(pid, notice, lives)?;
    Ok(Done::Value(0))
}

pub fn mq_getsetattr(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, new, old, ..] = *args;
    let wanted = match new {
        0 => None,
        address => Some(kernel.get_u64(tid, address)?),
    };
    if wanted.is_some_and(|flags| flags & !u64::from(OpenFlags::NONBLOCK) != 0) {
        return Err(Errno::INVAL);
    }
    let file = kernel.file(tid, fd)?;
    let queue = queue(&file)?;
    let flags = u64::from(file.flags().0 & OpenFlags::NONBLOCK);
    let Attributes { messages, message_bytes } = queue.attributes;
    if let Some(wanted) = wanted {
        file.set_flags(file.flags().0 & !OpenFlags::NONBLOCK | wanted as u32);
    }
    kernel.put_if(tid, old, &encode::words(&[flags, messages, message_bytes, queue.count(), 0, 0, 0, 0]))?;
    Ok(Done::Value(0))
}

/// A closed descriptor of a queue: its process is not told of messages any more (mq_notify(3)).
pub(crate) fn closed(file: &OpenFile, pid: u32) {
    file.downcast::<MessageQueue>().into_iter().for_each(|queue| queue.forget(pid));
}
