//! sendmmsg(2), recvmmsg(2): several messages with one call; and the list of interfaces (netdevice(7), SIOCGIFCONF).

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::socket::LocalSocket;
use drupe_appkernel_vfs::OpenFile;

use super::sockets::{recvmsg, sendmsg, MSG_DONTWAIT};
use super::Args;
use crate::kernel::{Done, Kernel};
use crate::table::Handler;
use crate::task::Tid;

const HEADER_BYTES: u64 = 64;
const LENGTH_AT: u64 = 56;
const MAX_MESSAGES: u64 = 1024;

/// The first message as the socket does it, the others as far as they go without waiting.
fn several(kernel: &mut Kernel, tid: Tid, args: &Args, one: Handler) -> Result<Done> {
    let [fd, list, count, flags, ..] = *args;
    let count = (count & 0xffff_ffff).min(MAX_MESSAGES);
    for at in 0..count {
        let header = list.checked_add(at * HEADER_BYTES).ok_or(Errno::FAULT)?;
        let more = if at == 0 { 0 } else { MSG_DONTWAIT };
        match one(kernel, tid, &[fd, header, flags | more, 0, 0, 0]) {
            Ok(Done::Value(length)) => kernel.put(tid, header + LENGTH_AT, &(length as u32).to_le_bytes())?,
            Err(_) if at > 0 => return Ok(Done::Value(at as i64)),
            other => return other,
        }
        kernel.pending(tid)?.progress = 0;
    }
    Ok(Done::Value(count as i64))
}

pub fn sendmmsg(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    several(kernel, tid, args, sendmsg)
}

pub fn recvmmsg(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const WAITFORONE: u64 = 0x1_0000;
    let [fd, list, count, flags, timeout, _] = *args;
    if timeout != 0 {
        kernel.get_time(tid, timeout)?; // a time at all
    }
    several(kernel, tid, &[fd, list, count, flags & !WAITFORONE, 0, 0], recvmsg)
}

/// Requests about interfaces, which every socket answers (netdevice(7)).
pub(super) fn is_about_interfaces(request: u32) -> bool {
    (0x8910..=0x8971).contains(&request)
}

/// The socket that knows the interfaces: of the pod's network, whatever socket was asked.
pub(super) fn knowing(kernel: &Kernel, tid: Tid, file: Arc<OpenFile>) -> Result<Arc<OpenFile>> {
    const INET: u64 = 2;
    const DATAGRAM: u64 = 2;
    if file.downcast::<LocalSocket>().is_none() {
        return Ok(file);
    }
    let made = kernel.with_context(tid, |context| Ok(kernel.host.socket(context, INET, DATAGRAM, 0)))?;
    made.unwrap_or(Ok(file))
}

/// Fill in the struct ifconf at `address`: whole entries, as many as there is room for.
pub(super) fn interfaces(kernel: &mut Kernel, tid: Tid, fd: u64, address: u64) -> Result<Done> {
    const SIOCGIFCONF: u32 = 0x8912;
    const ENTRY_BYTES: usize = 40;
    let file = knowing(kernel, tid, kernel.file(tid, fd)?)?;
    let [room, buffer] = kernel.get_words(tid, address)?;
    let mut list = Vec::new();
    kernel.with_context(tid, |context| file.file().ioctl(context, SIOCGIFCONF, 0, &mut list))?;
    if buffer != 0 {
        let room = room as u32 as usize / ENTRY_BYTES * ENTRY_BYTES;
        list.truncate(room);
        kernel.put(tid, buffer, &list)?;
    }
    kernel.put(tid, address, &(list.len() as u32).to_le_bytes())?;
    Ok(Done::Value(0))
}
