//! Sockets within the pod, written down and made again (snapshots of a running kernel): with what was sent to them, who is at
//! their other end, and who waits to be accepted.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::{coded, Errno, Result};

use super::address::canonical;
use super::inbox::{Files, Message};
use super::local::{LocalSocket, Stage};
use super::{Address, Family, Network, PeerCredentials, SocketKind};
use crate::dentry::Path;
use crate::open::OpenFile;

/// pid, uid, gid.
type SavedIds = (u32, u32, u32);

coded! {
    struct SavedMessage {
        bytes: Vec<u8>,
        from: Vec<u8>,
        ids: SavedIds,
        files: Vec<u32>,
        sealed: bool,
    }
}

coded! {
    /// A socket; others, and open files on their way to it, by their numbers. holds_name: the name is its own, and not that of
    /// the one that accepted it.
    pub struct SavedSocket {
        family: u8,
        kind: u8,
        name: Vec<u8>,
        holds_name: bool,
        stage: u8,
        peer: Option<u32>,
        peer_name: Vec<u8>,
        peer_ids: Option<SavedIds>,
        backlog: u64,
        pending: Vec<u32>,
        messages: Vec<SavedMessage>,
        shut: u8,
        error: Option<i32>,
        options: Vec<((u32, u32), Vec<u8>)>,
    }
}

/// Gives numbers to what a socket refers to.
pub trait Numbers {
    fn socket(&mut self, socket: &Arc<LocalSocket>) -> u32;
    fn file(&mut self, file: &Arc<OpenFile>) -> u32;
}

const FAMILIES: [Family; 3] = [Family::Unix, Family::V4, Family::V6];
const KINDS: [SocketKind; 3] = [SocketKind::Stream, SocketKind::Datagram, SocketKind::SeqPacket];
const STAGES: [Stage; 3] = [Stage::Fresh, Stage::Listening, Stage::Connected];

fn number_in<T: PartialEq>(all: &[T], one: &T) -> u8 {
    all.iter().position(|other| other == one).unwrap_or(0) as u8
}

fn one_of<T: Copy>(all: &[T], number: u8) -> Result<T> {
    all.get(usize::from(number)).copied().ok_or(Errno::INVAL)
}

fn ids(credentials: PeerCredentials) -> SavedIds {
    (credentials.pid, credentials.uid, credentials.gid)
}

fn credentials((pid, uid, gid): SavedIds) -> PeerCredentials {
    PeerCredentials { pid, uid, gid }
}

impl LocalSocket {
    /// Itself, as whoever shares it has it.
    pub fn shared(&self) -> Result<Arc<Self>> {
        self.own.upgrade().ok_or(Errno::BADF)
    }

    /// The socket file that it is bound to.
    pub fn bound(&self) -> Option<Path> {
        self.state.lock().bound.clone()
    }

    pub fn save(&self, numbers: &mut dyn Numbers) -> SavedSocket {
        let holds_name = self.network.holds(&self.own);
        let state = self.state.lock();
        let message = |message: &Message| SavedMessage {
            bytes: message.bytes.iter().copied().collect(),
            from: message.from.encode(),
            ids: ids(message.credentials),
            files: Vec::new(),
            sealed: message.sealed,
        };
        let mut messages: Vec<SavedMessage> = state.inbox.messages.iter().map(message).collect();
        for (saved, message) in messages.iter_mut().zip(&state.inbox.messages) {
            saved.files = message.files.list().iter().map(|file| numbers.file(file)).collect();
        }
        SavedSocket {
            family: number_in(&FAMILIES, &self.family),
            kind: number_in(&KINDS, &self.kind),
            name: state.name.encode(),
            holds_name,
            stage: number_in(&STAGES, &state.stage),
            peer: state.peer.upgrade().map(|peer| numbers.socket(&peer)),
            peer_name: state.peer_name.encode(),
            peer_ids: state.peer_credentials.map(ids),
            backlog: state.backlog as u64,
            pending: state.pending.iter().map(|socket| numbers.socket(socket)).collect(),
            messages,
            shut: state.shut,
            error: state.error.map(|errno| errno.0),
            options: state.options.0.iter().map(|(option, value)| (*option, value.clone())).collect(),
        }
    }

    /// A socket of the same family and kind, to be completed by `restore`. EINVAL.
    pub fn begin(network: &Arc<Network>, saved: &SavedSocket) -> Result<Arc<Self>> {
        Self::new(network, one_of(&FAMILIES, saved.family)?, one_of(&KINDS, saved.kind)?)
    }

    /// Be as it was. `bound`: the socket file that it was bound to. EINVAL for what makes no sense, EADDRINUSE.
    pub fn restore(
        &self,
        saved: &SavedSocket,
        sockets: &[Arc<LocalSocket>],
        files: &[Arc<OpenFile>],
        bound: Option<Path>,
    ) -> Result<()> {
        let socket = |number: &u32| sockets.get(*number as usize).cloned().ok_or(Errno::INVAL);
        let name = Address::decode(&saved.name)?;
        if saved.holds_name {
            self.hold(&name)?;
        }
        if let Some(path) = &bound {
            self.be_found_at(path);
        }
        let mut state = self.state.lock();
        for message in &saved.messages {
            let file = |number: &u32| files.get(*number as usize).cloned().ok_or(Errno::INVAL);
            let sent = message.files.iter().map(file).collect::<Result<Vec<_>>>()?;
            state.inbox.size_bytes += message.bytes.len();
            state.inbox.messages.push_back(Message {
                bytes: message.bytes.clone().into(),
                from: Address::decode(&message.from)?,
                credentials: credentials(message.ids),
                files: Files::new(sent, &self.network.in_flight)?,
                sealed: message.sealed,
            });
        }
        let peer = saved.peer.as_ref().map(socket).transpose()?;
        state.peer = peer.map_or_else(Weak::new, |peer| Arc::downgrade(&peer));
        (state.name, state.bound, state.stage) = (name, bound, one_of(&STAGES, saved.stage)?);
        state.peer_name = Address::decode(&saved.peer_name)?;
        state.peer_credentials = saved.peer_ids.map(credentials);
        state.backlog = (saved.backlog as usize).min(4096);
        state.pending = saved.pending.iter().map(socket).collect::<Result<_>>()?;
        (state.shut, state.error) = (saved.shut & 3, saved.error.map(Errno));
        state.options.0 = saved.options.iter().cloned().collect();
        Ok(())
    }

    fn hold(&self, name: &Address) -> Result<()> {
        match name {
            Address::Abstract(name) => self.network.bind_abstract(name, &self.own),
            Address::Inet(address) => {
                let address: SocketAddr = canonical(*address);
                self.network.hold_port(self.kind == SocketKind::Datagram, address, &self.own);
                Ok(())
            }
            _ => Err(Errno::INVAL),
        }
    }
}
