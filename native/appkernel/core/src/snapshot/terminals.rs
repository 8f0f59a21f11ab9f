//! Terminals: what lies between their ends, and who holds these.

use std::collections::HashMap;
use std::sync::Arc;

use drupe_appkernel_vfs::tty::{Devpts, Master, Pty, SavedTerminal, Slave};
use drupe_appkernel_vfs::{ClockId, Context, Credentials, Mount, OpenFile};

use super::state::TerminalFile;
use super::{damaged, opened, Refusal, Trees};
use crate::kernel::Kernel;

/// Terminals while a kernel is saved, each with its number.
#[derive(Default)]
pub(super) struct Terminals {
    numbers: HashMap<usize, u32>,
    pub saved: Vec<(u32, u32, SavedTerminal)>,
}

fn devpts(mount: &Mount) -> Option<&Devpts> {
    mount.file_system().as_any()?.downcast_ref()
}

impl Terminals {
    /// All that somebody has open.
    pub fn of(trees: &Trees<'_>) -> Terminals {
        let mut found = Terminals::default();
        for (tree, namespace) in trees.0.iter().zip(0..) {
            for (mount, number) in tree.mounts().iter().zip(0..) {
                for pty in devpts(mount).map(Devpts::terminals).unwrap_or_default() {
                    let next = found.saved.len() as u32;
                    if *found.numbers.entry(Arc::as_ptr(&pty) as usize).or_insert(next) == next {
                        found.saved.push((namespace, number, pty.save()));
                    }
                }
            }
        }
        found
    }

    /// The file as an end of a terminal; None: it is none.
    pub fn end(&self, trees: &Trees<'_>, file: &OpenFile) -> Result<Option<TerminalFile>, Refusal> {
        let master = file.downcast::<Master>().map(Master::terminal);
        let Some(pty) = master.or_else(|| file.downcast::<Slave>().map(Slave::terminal)) else { return Ok(None) };
        let number = self.numbers.get(&(Arc::as_ptr(pty) as usize));
        let terminal = *number.ok_or("a terminal that no container shows")?;
        let place = file.path().and_then(|path| trees.place(path));
        Ok(Some(TerminalFile { terminal, is_master: master.is_some(), place }))
    }
}

/// Terminals that were made again. Until this is dropped each has its master; who has none then is hung up.
pub(super) struct Held(Vec<(Arc<Pty>, Option<Arc<Master>>)>);

impl Held {
    pub fn restore(kernel: &Kernel, trees: &Trees<'_>, saved: &[(u32, u32, SavedTerminal)]) -> Result<Held, Refusal> {
        let credentials = Credentials::root();
        let context =
            Context { credentials: &credentials, now: kernel.host.now(ClockId::Realtime), pid: 0, session: 0 };
        let one = |(namespace, mount, saved): &(u32, u32, SavedTerminal)| {
            let mounts = trees.get(*namespace)?.mounts();
            let shows = mounts.get(*mount as usize).and_then(|mount| devpts(mount));
            let pty = shows.ok_or_else(|| damaged("a terminal's place"))?.restore(&context, saved);
            let pty = pty.map_err(|errno| damaged(&format!("a terminal: {errno}")))?;
            let master = saved.is_held.then(|| pty.open_master());
            Ok((pty, master))
        };
        saved.iter().map(one).collect::<Result<_, Refusal>>().map(Held)
    }

    pub fn end(&self, trees: &Trees<'_>, saved: &TerminalFile, flags: u32) -> Result<Arc<OpenFile>, Refusal> {
        let (pty, _) = self.0.get(saved.terminal as usize).ok_or_else(|| damaged("a terminal that is not there"))?;
        // One that was hung up before has no name.
        let path = saved.place.as_ref().and_then(|place| trees.find(place).ok());
        Ok(match saved.is_master {
            true => opened(pty.open_master(), path, flags),
            false => opened(Slave::again(pty), path, flags),
        })
    }
}
