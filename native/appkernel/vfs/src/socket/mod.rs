//! Sockets inside the pod: unix(7), and TCP and UDP between its own processes (ip(7), loopback). No packet is made: what one
//! end sends lies in the other's inbox.

mod address;
mod all;
mod connect;
mod control;
mod inbox;
mod local;
mod network;
mod options;
mod save;
mod transfer;

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::Arc;

use crate::dentry::Path;
use crate::open::OpenFile;
use crate::walk::View;

pub use address::Address;
pub use all::Socket;
pub use control::{control_messages, push_control_message, ControlMessage, SCM_CREDENTIALS, SCM_RIGHTS, SOL_SOCKET};
pub use local::LocalSocket;
pub use network::Network;
pub use save::{Numbers, SavedSocket};

/// Flags of send(2) and recv(2) that an object must know; the others are the core's.
pub const MSG_PEEK: u32 = 0x2;
pub const MSG_TRUNC: u32 = 0x20;
pub const MSG_CTRUNC: u32 = 0x8;
pub const MSG_EOR: u32 = 0x80;

pub const SO_RCVTIMEO: u32 = 20;
pub const SO_SNDTIMEO: u32 = 21;

/// net.ipv4.ip_unprivileged_port_start.
static FIRST_UNPRIVILEGED_PORT: AtomicU16 = AtomicU16::new(1024);

/// Ports from this one on are anybody's.
pub fn set_first_unprivileged_port(port: u16) {
    FIRST_UNPRIVILEGED_PORT.store(port, Ordering::Relaxed);
}

/// Whether only who has CAP_NET_BIND_SERVICE may take a port.
pub fn is_privileged_port(port: u16) -> bool {
    (1..FIRST_UNPRIVILEGED_PORT.load(Ordering::Relaxed)).contains(&port)
}

pub const SHUT_RD: u32 = 0;
pub const SHUT_WR: u32 = 1;
pub const SHUT_RDWR: u32 = 2;

/// Domain of socket(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Unix,
    V4,
    V6,
}

/// Type of socket(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    Stream,
    Datagram,
    SeqPacket,
}

impl SocketKind {
    fn connects(self) -> bool {
        self != Self::Datagram
    }
}

/// Who calls, and how paths of unix sockets lead from him.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    pub view: &'a View<'a>,
    pub working: &'a Path,
}

/// struct ucred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCredentials {
    pub pid: u32,
    pub uid: u32,
    pub gid: u32,
}

/// What goes with the bytes of sendmsg(2).
#[derive(Default)]
pub struct Outgoing<'a> {
    pub to: Option<(&'a Caller<'a>, &'a Address)>,
    /// SCM_RIGHTS.
    pub files: Vec<Arc<OpenFile>>,
    /// SCM_CREDENTIALS; None: the caller's.
    pub credentials: Option<PeerCredentials>,
    /// All control messages as they were given, and MSG_* flags: for sockets of the host's.
    pub control: &'a [u8],
    pub flags: u32,
}

/// What recvmsg(2) answers beside the bytes.
#[derive(Default)]
pub struct Received {
    pub count: usize,
    /// Of a datagram that did not fit: its whole length (MSG_TRUNC).
    pub full_length: usize,
    pub from: Option<Address>,
    pub files: Vec<Arc<OpenFile>>,
    /// With SO_PASSCRED.
    pub credentials: Option<PeerCredentials>,
    /// Control messages of the host's, encoded.
    pub control: Vec<u8>,
    /// MSG_TRUNC, MSG_EOR.
    pub flags: u32,
}

#[cfg(test)]
mod tests;
