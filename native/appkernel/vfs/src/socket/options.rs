//! getsockopt(2) and setsockopt(2).

use std::collections::BTreeMap;

use drupe_appkernel_abi::{Errno, Result};

use super::local::{LocalSocket, Stage};
use super::{Family, SocketKind, SO_RCVTIMEO, SO_SNDTIMEO};

const SOL_SOCKET: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const SO_REUSEADDR: u32 = 2;
const SO_TYPE: u32 = 3;
const SO_ERROR: u32 = 4;
const SO_SNDBUF: u32 = 7;
const SO_RCVBUF: u32 = 8;
const SO_LINGER: u32 = 13;
const SO_REUSEPORT: u32 = 15;
const SO_PASSCRED: u32 = 16;
const SO_PEERCRED: u32 = 17;
const SO_ACCEPTCONN: u32 = 30;
const SO_PROTOCOL: u32 = 38;
const SO_DOMAIN: u32 = 39;

/// Kept and told, without effect between processes of one machine: dontroute, broadcast, keepalive, oobinline, priority,
/// timestamps; TCP's delays and timeouts; traffic classes of IP and IPv6; V6ONLY is looked at in bind.
const KEPT: [(u32, &[u32]); 4] = [
    (SOL_SOCKET, &[2, 5, 6, 9, 10, 12, 13, 15, 16, 20, 21, 29, 35]),
    (0, &[1, 2, 8, 10, 11, 24, 32, 33, 34]),
    (IPPROTO_TCP, &[1, 3, 4, 5, 6, 7, 8, 9, 10, 12, 18, 23]),
    (41, &[16, 18, 19, 23, 24, 25, 26, 49, 66, 67]),
];

/// What buffers hold, in both directions.
pub(super) const BUFFER_BYTES: usize = 212_992;

/// Options as they were set.
#[derive(Default)]
pub(super) struct Options(pub(super) BTreeMap<(u32, u32), Vec<u8>>);

impl Options {
    fn is_on(&self, option: u32) -> bool {
        self.0.get(&(SOL_SOCKET, option)).is_some_and(|value| value.iter().any(|byte| *byte != 0))
    }

    pub fn passes_credentials(&self) -> bool {
        self.is_on(SO_PASSCRED)
    }

    pub fn reuses_address(&self) -> bool {
        self.is_on(SO_REUSEADDR)
    }

    pub fn reuses_port(&self) -> bool {
        self.is_on(SO_REUSEPORT)
    }
}

fn size_of_option(level: u32, name: u32) -> usize {
    match (level, name) {
        (SOL_SOCKET, SO_LINGER) => 8,
        (SOL_SOCKET, SO_RCVTIMEO | SO_SNDTIMEO) => 16,
        _ => 4,
    }
}

fn is_kept(level: u32, name: u32) -> bool {
    KEPT.iter().any(|(of, names)| *of == level && names.contains(&name))
}

impl LocalSocket {
    /// getsockopt(2). ENOPROTOOPT.
    pub fn option(&self, level: u32, name: u32) -> Result<Vec<u8>> {
        let number = |value: u32| Ok(value.to_ne_bytes().to_vec());
        let mut state = self.state.lock();
        match (level, name) {
            (SOL_SOCKET, SO_TYPE) => number(match self.kind {
                SocketKind::Stream => 1,
                SocketKind::Datagram => 2,
                SocketKind::SeqPacket => 5,
            }),
            (SOL_SOCKET, SO_DOMAIN) => number(match self.family {
                Family::Unix => 1,
                Family::V4 => 2,
                Family::V6 => 10,
            }),
            (SOL_SOCKET, SO_PROTOCOL) => number(match (self.family, self.kind) {
                (Family::Unix, _) => 0,
                (_, SocketKind::Datagram) => 17,
                _ => 6,
            }),
            (SOL_SOCKET, SO_ERROR) => number(state.error.take().map_or(0, |error| error.0 as u32)),
            (SOL_SOCKET, SO_SNDBUF | SO_RCVBUF) => number(BUFFER_BYTES as u32),
            (SOL_SOCKET, SO_ACCEPTCONN) => number(u32::from(state.stage == Stage::Listening)),
            (SOL_SOCKET, SO_PEERCRED) if self.family == Family::Unix => {
                let peer = state.peer_credentials;
                let words = peer.map_or([0, u32::MAX, u32::MAX], |peer| [peer.pid, peer.uid, peer.gid]);
                Ok(words.iter().flat_map(|word| word.to_ne_bytes()).collect())
            }
            _ if is_kept(level, name) && self.knows(level) => {
                let kept = state.options.0.get(&(level, name)).cloned();
                Ok(kept.unwrap_or_else(|| vec![0; size_of_option(level, name)]))
            }
            _ => Err(Errno::NOPROTOOPT),
        }
    }

    /// setsockopt(2). ENOPROTOOPT, EINVAL. The size of buffers is fixed: SO_SNDBUF and SO_RCVBUF are hints.
    pub fn set_option(&self, level: u32, name: u32, value: &[u8]) -> Result<()> {
        let value = value.get(..size_of_option(level, name)).ok_or(Errno::INVAL)?;
        match (level, name) {
            (SOL_SOCKET, SO_SNDBUF | SO_RCVBUF) => Ok(()),
            _ if is_kept(level, name) && self.knows(level) => {
                self.state.lock().options.0.insert((level, name), value.to_vec());
                Ok(())
            }
            _ => Err(Errno::NOPROTOOPT),
        }
    }

    fn knows(&self, level: u32) -> bool {
        match level {
            SOL_SOCKET => true,
            IPPROTO_TCP => self.family != Family::Unix && self.kind == SocketKind::Stream,
            41 => self.family == Family::V6,
            _ => self.family != Family::Unix,
        }
    }
}
