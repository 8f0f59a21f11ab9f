//! Terminals written down and made again (snapshots of a running kernel).

use std::sync::Arc;

use drupe_appkernel_abi::{coded, Errno, Result};

use super::discipline::{Discipline, SavedDiscipline};
use super::pty::{Master, Pty, Slave};
use crate::file::{File, Timestamp};
use crate::kind::SetAttributes;

coded! {
    /// A terminal without its ends. is_held: a master was open. owner: user, group, permissions. times: of the last read,
    /// write and change.
    pub struct SavedTerminal {
        pub index: u32,
        pub is_held: bool,
        window: (u32, u32, u32, u32),
        session: u32,
        foreground: u32,
        is_locked: bool,
        is_left: bool,
        owner: (u32, u32, u32),
        times: [(i64, u32); 2],
        discipline: SavedDiscipline,
    }
}

/// Of a terminal; the time of its last change is that of its restore.
impl Pty {
    pub fn save(&self) -> SavedTerminal {
        let (state, metadata) = (self.state.lock(), self.metadata());
        let [rows, columns, width, height] = state.window.map(u32::from);
        SavedTerminal {
            index: self.index,
            is_held: state.is_held(),
            window: (rows, columns, width, height),
            session: state.session,
            foreground: state.foreground,
            is_locked: state.locked,
            is_left: state.left,
            owner: (metadata.uid, metadata.gid, metadata.mode & 0o7777),
            times: [metadata.accessed, metadata.modified].map(|time| (time.seconds, time.nanoseconds)),
            discipline: state.discipline.save(),
        }
    }

    /// Be in that state; who holds its ends stays as it is. EINVAL.
    pub fn restore(&self, now: Timestamp, saved: &SavedTerminal) -> Result<()> {
        let discipline = Discipline::restored(&saved.discipline).ok_or(Errno::INVAL)?;
        let (rows, columns, width, height) = saved.window;
        let [accessed, modified] =
            saved.times.map(|(seconds, part)| Some(Timestamp::new(seconds, part.min(999_999_999))));
        let (uid, gid, mode) = saved.owner;
        let (uid, gid, permissions) = (Some(uid), Some(gid), Some(mode & 0o777));
        self.set_attributes(
            now,
            &SetAttributes { uid, gid, permissions, accessed, modified, ..SetAttributes::default() },
        );
        let mut state = self.state.lock();
        state.discipline = discipline;
        state.window = [rows, columns, width, height].map(|size| size as u16);
        (state.session, state.foreground) = (saved.session, saved.foreground);
        (state.locked, state.left) = (saved.is_locked, saved.is_left);
        Ok(())
    }
}

impl Master {
    pub fn terminal(&self) -> &Arc<Pty> {
        &self.pty
    }
}

impl Slave {
    pub fn terminal(&self) -> &Arc<Pty> {
        &self.pty
    }

    /// One end more, whatever state the terminal is in.
    pub fn again(terminal: &Arc<Pty>) -> Arc<dyn File> {
        terminal.join()
    }
}
