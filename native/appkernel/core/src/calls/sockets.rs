//! Sockets: unix ones of the pod's own, and those of its network.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::socket::{
    control_messages, push_control_message, ControlMessage, SCM_CREDENTIALS, SCM_RIGHTS, SOL_SOCKET,
};
use drupe_appkernel_vfs::socket::{
    Address, Caller, Family, LocalSocket, Outgoing, PeerCredentials, Received, Socket, SocketKind, MSG_CTRUNC,
    MSG_PEEK, MSG_TRUNC, SO_RCVTIMEO, SO_SNDTIMEO,
};
use drupe_appkernel_vfs::{wait, Events, OpenFile, OpenFlags};

use super::Args;
use crate::guest::{total, Piece, IO_MAX};
use crate::kernel::{Done, Kernel};
use crate::pids;
use crate::task::Tid;

const NONBLOCK: u64 = OpenFlags::NONBLOCK as u64;
const CLOEXEC: u64 = OpenFlags::CLOEXEC as u64;
pub(super) const MSG_DONTWAIT: u64 = 0x40;
const MSG_WAITALL: u64 = 0x100;
const MSG_NOSIGNAL: u64 = 0x4000;
const MSG_CMSG_CLOEXEC: u64 = 0x4000_0000;
const ADDRESS_MAX: u64 = 128;
const CONTROL_MAX: u64 = 20_480;
const OPTION_MAX: u64 = 1024;

fn family(domain: u64) -> Result<Family> {
    match domain {
        1 => Ok(Family::Unix),
        2 => Ok(Family::V4),
        10 => Ok(Family::V6),
        _ => Err(Errno::AFNOSUPPORT),
    }
}

fn kind(kind: u64) -> Result<SocketKind> {
    match kind & !(NONBLOCK | CLOEXEC) {
        1 => Ok(SocketKind::Stream),
        2 => Ok(SocketKind::Datagram),
        5 => Ok(SocketKind::SeqPacket),
        3 => Err(Errno::PERM), // raw
        _ => Err(Errno::INVAL),
    }
}

/// TCP for streams, UDP for datagrams, or the default.
fn check_protocol(family: Family, kind: SocketKind, protocol: u64) -> Result<()> {
    let right = match (family, kind) {
        (Family::Unix, _) => protocol <= 1,
        (_, SocketKind::Stream) => matches!(protocol, 0 | 6),
        _ => matches!(protocol, 0 | 17),
    };
    right.then_some(()).ok_or(Errno::PROTONOSUPPORT)
}

fn open_flags(kind: u64) -> OpenFlags {
    OpenFlags(OpenFlags::RDWR | (kind & NONBLOCK) as u32)
}

pub fn socket(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const UNIX: u64 = 1;
    if args[0] != UNIX {
        let kind = args[1] & !CLOEXEC;
        let made = kernel.with_context(tid, |context| Ok(kernel.host.socket(context, args[0], kind, args[2])))?;
        if let Some(made) = made {
            return Ok(Done::Value(kernel.install(tid, made?, args[1] & CLOEXEC != 0)?.into()));
        }
    }
    let (family, sort) = (family(args[0])?, kind(args[1])?);
    check_protocol(family, sort, args[2])?;
    let socket = LocalSocket::new(&kernel.network, family, sort)?;
    let file = kernel.with_context(tid, |context| Ok(socket.open(context, open_flags(args[1]))))?;
    Ok(Done::Value(kernel.install(tid, file, args[1] & CLOEXEC != 0)?.into()))
}

pub fn socketpair(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (family, sort) = (family(args[0])?, kind(args[1])?);
    check_protocol(family, sort, args[2])?;
    if family != Family::Unix {
        return Err(Errno::NOTSUP);
    }
    let network = Arc::clone(&kernel.network);
    let files = kernel.with_context(tid, |context| {
        let (one, two) = LocalSocket::pair(context, &network, sort)?;
        Ok([one.open(context, open_flags(args[1])), two.open(context, open_flags(args[1]))])
    })?;
    let mut fds = Vec::new();
    for file in files {
        let made = kernel.install(tid, file, args[1] & CLOEXEC != 0).map(|fd| fds.push(fd));
        kernel.unless_told(tid, &fds, made)?;
    }
    let bytes: Vec<u8> = fds.iter().flat_map(|fd| fd.to_le_bytes()).collect();
    let told = kernel.put_now(tid, args[3], &bytes);
    kernel.unless_told(tid, &fds, told)?;
    Ok(Done::Value(0))
}

fn of(file: &OpenFile) -> Result<&dyn Socket> {
    file.file().as_socket().ok_or(Errno::NOTSOCK)
}

fn address(kernel: &Kernel, tid: Tid, at: u64, size: u64) -> Result<Address> {
    if size > ADDRESS_MAX {
        return Err(Errno::INVAL);
    }
    Address::decode(&kernel.get_bytes(tid, at, size as usize)?)
}

/// How something is written for the guest: when it goes on, or at once.
type Put = fn(&Kernel, Tid, u64, &[u8]) -> Result<()>;

/// A struct sockaddr and its length, cut to the room that there is.
fn put_address(kernel: &Kernel, tid: Tid, at: u64, length_at: u64, address: &Address, put: Put) -> Result<()> {
    if at == 0 {
        return Ok(());
    }
    let (bytes, room) = (address.encode(), kernel.get_u32(tid, length_at)?);
    if (room as i32) < 0 {
        return Err(Errno::INVAL);
    }
    put(kernel, tid, at, &bytes[..bytes.len().min(room as usize)])?;
    put(kernel, tid, length_at, &(bytes.len() as u32).to_le_bytes())
}

impl Kernel {
    fn as_caller<T>(&self, tid: Tid, act: impl FnOnce(&Caller<'_>) -> Result<T>) -> Result<T> {
        let seat = self.seat(tid)?;
        let context = seat.context();
        let view = seat.view(&context);
        act(&Caller { view: &view, working: &seat.cwd })
    }

    /// Wait for a socket, at most as long as its SO_RCVTIMEO or SO_SNDTIMEO says.
    fn wait_for_socket(&mut self, tid: Tid, file: &OpenFile, events: Events, flags: u64) -> Result<Done> {
        // Errors that a socket of the network keeps are never waited for (MSG_ERRQUEUE).
        let of_errors = flags & MSG_ERRQUEUE != 0 && file.downcast::<LocalSocket>().is_none();
        if file.is_nonblocking() || flags & MSG_DONTWAIT != 0 || of_errors || self.is_over(tid) {
            return Err(Errno::AGAIN);
        }
        let option = if events & wait::IN != 0 { SO_RCVTIMEO } else { SO_SNDTIMEO };
        let limit = of(file)?.option(SOL_SOCKET, option, 16).unwrap_or_default();
        let word = |i: usize| limit.get(8 * i..8 * i + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        let limit_ns = word(0).saturating_mul(1_000_000_000).saturating_add(word(1) * 1000);
        self.wait_for_file(tid, file, events)?;
        let deadline = match self.pending(tid)?.deadline_ns {
            Some(deadline) => Some(deadline),
            None => (limit_ns > 0).then(|| self.timers.now_ns().saturating_add(limit_ns)),
        };
        self.wait_until(tid, deadline)
    }
}

pub fn bind(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let file = kernel.file(tid, args[0])?;
    let (socket, address) = (of(&file)?, address(kernel, tid, args[1], args[2])?);
    kernel.as_caller(tid, |caller| socket.bind(caller, &address))?;
    Ok(Done::Value(0))
}

pub fn listen(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let file = kernel.file(tid, args[0])?;
    let socket = of(&file)?;
    kernel.with_context(tid, |context| socket.listen(context, args[1] as u32))?;
    Ok(Done::Value(0))
}

pub fn connect(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let file = kernel.file(tid, args[0])?;
    let (socket, address) = (of(&file)?, address(kernel, tid, args[1], args[2])?);
    match kernel.as_caller(tid, |caller| socket.connect(caller, &address)) {
        Err(Errno::AGAIN) => kernel.wait_for_socket(tid, &file, wait::OUT, 0),
        Err(on_its_way @ (Errno::INPROGRESS | Errno::ALREADY)) if !file.is_nonblocking() => {
            kernel.wait_for_socket(tid, &file, wait::OUT, 0).map_err(|_| on_its_way)
        }
        other => other.map(|()| Done::Value(0)),
    }
}

pub fn accept4(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, at, length_at, flags, ..] = *args;
    if flags & !(NONBLOCK | CLOEXEC) != 0 {
        return Err(Errno::INVAL);
    }
    let file = kernel.file(tid, fd)?;
    let socket = of(&file)?;
    match kernel.with_context(tid, |context| socket.accept(context, open_flags(flags))) {
        Ok((accepted, address)) => {
            let fd = kernel.install(tid, accepted, flags & CLOEXEC != 0)?;
            let told = put_address(kernel, tid, at, length_at, &address, Kernel::put_now);
            kernel.unless_told(tid, &[fd], told)?;
            Ok(Done::Value(fd.into()))
        }
        Err(Errno::AGAIN) => kernel.wait_for_socket(tid, &file, wait::IN, 0),
        Err(errno) => Err(errno),
    }
}

pub fn accept(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    accept4(kernel, tid, &[args[0], args[1], args[2], 0, 0, 0])
}

/// EFAULT: here an address is all there is to ask for.
fn check_place(args: &Args) -> Result<()> {
    (args[1] != 0).then_some(()).ok_or(Errno::FAULT)
}

pub fn getsockname(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let file = kernel.file(tid, args[0])?;
    put_address(kernel, tid, args[1], args[2], &of(&file)?.name()?, Kernel::put)?;
    check_place(args)?;
    Ok(Done::Value(0))
}

pub fn getpeername(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let file = kernel.file(tid, args[0])?;
    put_address(kernel, tid, args[1], args[2], &of(&file)?.peer_name()?, Kernel::put)?;
    check_place(args)?;
    Ok(Done::Value(0))
}

pub fn shutdown(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let file = kernel.file(tid, args[0])?;
    of(&file)?.shutdown(args[1] as u32)?;
    Ok(Done::Value(0))
}

/// The credentials of who connected.
const SO_PEERCRED: u64 = 17;

pub fn getsockopt(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, level, name, at, length_at, _] = *args;
    let file = kernel.file(tid, fd)?;
    let room = kernel.get_u32(tid, length_at)? as usize;
    if (room as i32) < 0 {
        return Err(Errno::INVAL);
    }
    // Of levels below the socket's own, Linux says that they are none.
    let elsewhere = !matches!(level as u32, 0 | 1 | 6 | 41);
    let mut value = match of(&file)?.option(level as u32, name as u32, room) {
        Err(Errno::NOPROTOOPT) if elsewhere => return Err(Errno::NOTSUP),
        value => value?,
    };
    if (level as u32, name) == (SOL_SOCKET, SO_PEERCRED) {
        pids::show(kernel.view(tid), &mut value);
    }
    let size = value.len().min(room);
    kernel.put(tid, at, &value[..size])?;
    kernel.put(tid, length_at, &(size as u32).to_le_bytes())?;
    Ok(Done::Value(0))
}

pub fn setsockopt(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, level, name, at, size, _] = *args;
    let file = kernel.file(tid, fd)?;
    if size > OPTION_MAX {
        return Err(Errno::INVAL);
    }
    let value = kernel.get_bytes(tid, at, size as usize)?;
    of(&file)?.set_option(level as u32, name as u32, &value)?;
    Ok(Done::Value(0))
}

/// One message as the caller describes it.
#[derive(Default)]
struct Message {
    pieces: Vec<Piece>,
    name: (u64, u64),
    control: (u64, u64),
}

struct Sending {
    to: Option<Address>,
    files: Vec<Arc<OpenFile>>,
    credentials: Option<PeerCredentials>,
    control: Vec<u8>,
}

/// Bytes sent, or the wait for room.
fn send(kernel: &mut Kernel, tid: Tid, file: &OpenFile, pieces: &[Piece], flags: u64, with: &Sending) -> Result<Done> {
    let (socket, want) = (of(file)?, total(pieces));
    loop {
        let done = kernel.pending(tid)?.progress;
        let data = kernel.gather(tid, pieces, done, ((want - done) as usize).min(IO_MAX))?;
        let files = if done == 0 { with.files.clone() } else { Vec::new() };
        let sent = kernel.as_caller(tid, |caller| {
            let to = with.to.as_ref().map(|address| (caller, address));
            let (credentials, control) = (with.credentials, with.control.as_slice());
            let outgoing = Outgoing { to, files, credentials, control, flags: flags as u32 };
            socket.send(caller.view.context, &data, outgoing)
        });
        match sent {
            Ok(count) => {
                let done = done + count as u64;
                kernel.pending(tid)?.progress = done;
                if done >= want || socket.kind() != SocketKind::Stream {
                    return Ok(Done::Value(done as i64));
                }
            }
            Err(Errno::AGAIN) => match kernel.wait_for_socket(tid, file, wait::OUT, flags) {
                Err(_) if done > 0 => return Ok(Done::Value(done as i64)),
                other => return other,
            },
            Err(_) if done > 0 => return Ok(Done::Value(done as i64)),
            Err(Errno::PIPE) if flags & MSG_NOSIGNAL == 0 && socket.kind() != SocketKind::Datagram => {
                return Err(kernel.broken_pipe(tid));
            }
            Err(errno) => return Err(errno),
        }
    }
}

pub fn sendto(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, at, size, flags, name, name_size] = *args;
    let file = kernel.file(tid, fd)?;
    let to = if name == 0 { None } else { Some(address(kernel, tid, name, name_size)?) };
    let pieces = [Piece { address: at, size: size as usize }];
    send(kernel, tid, &file, &pieces, flags, &Sending { to, files: Vec::new(), credentials: None, control: Vec::new() })
}

/// UIO_MAXIOV.
const PIECES_MAX: u64 = 1024;
const MSG_ERRQUEUE: u64 = 0x2000;

fn message(kernel: &Kernel, tid: Tid, at: u64) -> Result<Message> {
    let [name, name_size, pieces, count, control, control_size, _] = kernel.get_words(tid, at)?;
    if name != 0 && (name_size as i32) < 0 {
        return Err(Errno::INVAL);
    }
    if count > PIECES_MAX {
        return Err(Errno::MSGSIZE);
    }
    Ok(Message {
        pieces: kernel.get_pieces(tid, pieces, count)?,
        name: (name, name_size & 0xffff_ffff),
        control: (control, control_size),
    })
}

fn sending(kernel: &Kernel, tid: Tid, message: &Message) -> Result<Sending> {
    let to = if message.name.0 == 0 { None } else { Some(address(kernel, tid, message.name.0, message.name.1)?) };
    let mut sending = Sending { to, files: Vec::new(), credentials: None, control: Vec::new() };
    if message.control.1 > CONTROL_MAX {
        return Err(Errno::NOBUFS);
    }
    let control = kernel.get_bytes(tid, message.control.0, message.control.1 as usize)?;
    for part in control_messages(&control)? {
        let words = part.data.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        match (part.level, part.kind) {
            (SOL_SOCKET, SCM_RIGHTS) => {
                for fd in words {
                    sending.files.push(kernel.any_file(tid, fd.into())?);
                }
            }
            (SOL_SOCKET, SCM_CREDENTIALS) => {
                let ids: Vec<u32> = words.collect();
                let [pid, uid, gid] = ids[..] else { return Err(Errno::INVAL) };
                sending.credentials = Some(PeerCredentials { pid: pids::known(kernel.view(tid), pid), uid, gid });
            }
            (SOL_SOCKET, _) => return Err(Errno::INVAL),
            _ => {} // of a protocol: the socket knows
        }
    }
    sending.control = control;
    Ok(sending)
}

pub fn sendmsg(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let file = kernel.file(tid, args[0])?;
    let message = message(kernel, tid, args[1])?;
    let with = sending(kernel, tid, &message)?;
    send(kernel, tid, &file, &message.pieces, args[2], &with)
}

/// Bytes received and what came with them; None: it waits.
fn receive(kernel: &mut Kernel, tid: Tid, file: &OpenFile, pieces: &[Piece], flags: u64) -> Result<Option<Received>> {
    let (socket, want) = (of(file)?, total(pieces));
    let streams = socket.kind() == SocketKind::Stream;
    let all = flags & MSG_WAITALL != 0 && streams && flags & u64::from(MSG_PEEK) == 0;
    let done = kernel.pending(tid)?.progress;
    let mut buffer = vec![0; (want - done).min(IO_MAX as u64) as usize];
    let got = kernel.with_context(tid, |context| socket.receive(context, &mut buffer, flags as u32));
    match got {
        Ok(mut received) => {
            kernel.scatter(tid, pieces, done, &buffer[..received.count])?;
            received.count += done as usize;
            if all && received.count > done as usize && (received.count as u64) < want {
                kernel.pending(tid)?.progress = received.count as u64;
                return match kernel.wait_for_socket(tid, file, wait::IN, flags) {
                    Ok(_) => {
                        kernel.ready.push(tid);
                        Ok(None)
                    }
                    Err(_) => Ok(Some(received)),
                };
            }
            Ok(Some(received))
        }
        Err(Errno::AGAIN) => match kernel.wait_for_socket(tid, file, wait::IN, flags) {
            Ok(_) => Ok(None),
            Err(_) if done > 0 => Ok(Some(Received { count: done as usize, ..Received::default() })),
            Err(errno) => Err(errno),
        },
        Err(errno) => Err(errno),
    }
}

/// What recv(2) returns: with MSG_TRUNC the whole length of a datagram.
fn length(received: &Received, flags: u64) -> i64 {
    let whole = flags & u64::from(MSG_TRUNC) != 0 && received.full_length > received.count;
    (if whole { received.full_length } else { received.count }) as i64
}

pub fn recvfrom(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, at, size, flags, name, name_size_at] = *args;
    let file = kernel.file(tid, fd)?;
    let pieces = [Piece { address: at, size: size as usize }];
    if name != 0 && (kernel.get_u32(tid, name_size_at)? as i32) < 0 {
        return Err(Errno::INVAL);
    }
    let Some(received) = receive(kernel, tid, &file, &pieces, flags)? else { return Ok(Done::Wait) };
    if let (Some(from), true) = (&received.from, name != 0) {
        put_address(kernel, tid, name, name_size_at, from, Kernel::put)?;
    } else if name != 0 {
        kernel.put(tid, name_size_at, &[0; 4])?;
    }
    Ok(Done::Value(length(&received, flags)))
}

pub fn recvmsg(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, at, flags, ..] = *args;
    let file = kernel.file(tid, fd)?;
    let message = message(kernel, tid, at)?;
    let Some(received) = receive(kernel, tid, &file, &message.pieces, flags)? else { return Ok(Done::Wait) };
    answer(kernel, tid, at, &message, &received, flags)?;
    Ok(Done::Value(length(&received, flags)))
}

/// Fill in the struct msghdr at `at`: name, control messages, flags.
fn answer(kernel: &mut Kernel, tid: Tid, at: u64, message: &Message, received: &Received, flags: u64) -> Result<()> {
    let name = received.from.as_ref().map(Address::encode).unwrap_or_default();
    if message.name.0 != 0 {
        kernel.put(tid, message.name.0, &name[..name.len().min(message.name.1 as usize)])?;
        kernel.put(tid, at + 8, &(name.len() as u32).to_le_bytes())?;
    }
    let room = message.control.1.min(CONTROL_MAX) as usize;
    let (mut control, mut out_flags) = (received.control.clone(), received.flags | (flags & MSG_CMSG_CLOEXEC) as u32);
    if control.len() > room {
        out_flags |= MSG_CTRUNC;
        cut_control(&mut control, room);
    }
    if let Some(peer) = received.credentials {
        let pid = pids::seen_from(kernel.view(tid), peer.pid);
        let data = [pid, peer.uid, peer.gid].map(u32::to_le_bytes).concat();
        let part = ControlMessage { level: SOL_SOCKET, kind: SCM_CREDENTIALS, data: &data };
        if !push_control_message(&mut control, room, part) {
            out_flags |= MSG_CTRUNC;
        }
    }
    if !received.files.is_empty() && !put_files(kernel, tid, &mut control, room, received, flags)? {
        out_flags |= MSG_CTRUNC;
    }
    if message.control.0 != 0 {
        kernel.put(tid, message.control.0, &control)?;
    }
    // The last one, too, counts with its padding (CMSG_SPACE), where there is room for that.
    let taken = control.len().next_multiple_of(8).min(room.max(control.len()));
    kernel.put_words(tid, at + 40, &[taken as u64])?;
    kernel.put(tid, at + 48, &out_flags.to_le_bytes())
}

/// Shorten control messages to the room there is, as Linux does: the last that begins in it says how much of it came.
fn cut_control(control: &mut Vec<u8>, room: usize) {
    const HEADER: usize = 16;
    let mut at = 0;
    while let Some(size) = control.get(at..at + 8).and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?))) {
        let end = at.saturating_add((size as usize).max(HEADER));
        if end > room {
            break;
        }
        at = end.next_multiple_of(8);
    }
    let rest = room.saturating_sub(at);
    if rest < HEADER {
        return control.truncate(at.min(room));
    }
    control.truncate(room);
    control.get_mut(at..at + 8).into_iter().for_each(|size| size.copy_from_slice(&(rest as u64).to_le_bytes()));
}

/// Give the caller the files that came. False: some had no room.
fn put_files(
    kernel: &mut Kernel,
    tid: Tid,
    control: &mut Vec<u8>,
    room: usize,
    received: &Received,
    flags: u64,
) -> Result<bool> {
    const HEADER: usize = 16;
    let fitting = room.saturating_sub(control.len().next_multiple_of(8) + HEADER) / 4;
    let mut data = Vec::new();
    for file in received.files.iter().take(fitting) {
        let Ok(fd) = kernel.install(tid, Arc::clone(file), flags & MSG_CMSG_CLOEXEC != 0) else { break };
        data.extend(fd.to_le_bytes());
    }
    if data.is_empty() {
        return Ok(false);
    }
    let whole = data.len() == 4 * received.files.len();
    push_control_message(control, room, ControlMessage { level: SOL_SOCKET, kind: SCM_RIGHTS, data: &data });
    Ok(whole)
}
