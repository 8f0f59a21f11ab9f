//! How spaces and threads come into being: by a stub's own clone(2), which is let pass because it was ordered. What is made
//! shows a token that nobody else knows: at any time others may ring whom the kernel does not know, a thread that was told to end
//! and did not, one whose process is being killed, a child that came too late.

use std::collections::VecDeque;
use std::os::fd::AsFd;

use drupe_appkernel_abi::{Errno, Registers, Result};
use drupe_appkernel_core::platform::{Platform, SpaceId, ThreadId};
use drupe_appkernel_hostsys::layout::{self, CALL_BORN, CALL_DOORBELL};
use drupe_appkernel_hostsys::notify::Notification;
use drupe_appkernel_hostsys::slot::{Op, Slot};
use drupe_appkernel_hostsys::{clock, memory, poll};

use super::{errno, Space, Stubs, Thread, Waiting, WORD_SPACE};
use crate::ops::{self, Expected};

/// Slots are used again only when this many have been used since, so that their last thread is surely gone.
const SLOT_REST: usize = 32;

impl Stubs {
    /// Wait for a process that `parent` has just forked, and give it slots of its own; one that cannot have them ends.
    /// `inside`: its number there, as the host told the parent; it lies in the parent's memory, and only /proc believes it.
    fn deliver(
        &mut self,
        parent: ThreadId,
        made: Option<&Registers>,
        (inside, token): (i64, u64),
    ) -> Result<(SpaceId, ThreadId)> {
        let born = self.wait_for_stranger(CALL_BORN, token)?;
        self.settle_in(&born, parent, made, inside).inspect_err(|_| {
            poll::signal_thread(born.thread, born.thread, libc::SIGKILL); // needs no descriptor, which may be what is missing
            self.listener.refuse(born.id, Errno::PERM.0);
            let half = self.spaces.iter().find(|(_, space)| space.process == born.thread).map(|(id, _)| *id);
            half.into_iter().for_each(|id| self.end_space(id));
        })
    }

    fn settle_in(
        &mut self,
        born: &Notification,
        parent: ThreadId,
        made: Option<&Registers>,
        inside: i64,
    ) -> Result<(SpaceId, ThreadId)> {
        let index = self.thread(parent)?.index;
        let slots = memory::memfd("drupe-slots", layout::SLOTS_SIZE).map_err(errno)?;
        let slot = Slot::map(slots.as_fd(), index).map_err(errno)?;
        slot.prepare_stack();
        match made {
            Some(registers) => slot.make_frame(registers),
            None => {
                if !slot.copy_frame(&self.thread(parent)?.slot) {
                    return Err(Errno::FAULT);
                }
            }
        }
        let pidfd = poll::pidfd(born.thread).map_err(errno)?;
        let fd = self.listener.add_fd(born.id, slots.as_fd(), None).map_err(errno)?;
        let (space, thread) = (SpaceId(self.next), ThreadId(self.next));
        self.next += 1;
        self.poller
            .add(std::os::fd::AsRawFd::as_raw_fd(&pidfd), libc::EPOLLIN as u32, WORD_SPACE | u64::from(space.0))
            .map_err(errno)?;
        let resting = (0..index).collect();
        let lane = self.thread(parent).and_then(|t| self.spaces.get(&t.space).ok_or(Errno::SRCH))?.lane;
        let in_proc = if self.numbers_inside { inside as i32 } else { born.thread };
        let new =
            Space { process: born.thread, in_proc, pidfd, slots, next_slot: index + 1, resting, threads: 1, lane };
        self.spaces.insert(space, new);
        let expected = VecDeque::from([Expected::slots(fd)]);
        let owns_gs = self.thread(parent)?.owns_gs;
        self.add_thread(thread, Thread { expected, owns_gs, in_proc, ..Thread::new(born.thread, space, index, slot) });
        self.listener.answer(born.id, i64::from(fd));
        self.wait_for_bell(thread)?;
        Ok((space, thread))
    }

    fn add_thread(&mut self, id: ThreadId, thread: Thread) {
        self.by_host.insert(thread.host, id);
        self.threads.insert(id, thread);
    }

    /// The first call of what was made by the order with this token.
    fn wait_for_stranger(&mut self, number: u32, token: u64) -> Result<Notification> {
        let is_it = |note: &Notification| note.number == number && note.args[ops::TOKEN] == token;
        if let Some(found) = self.stash.find(is_it) {
            return Ok(found);
        }
        loop {
            let Some(note) = self.receive()? else { continue };
            if is_it(&note) && !self.by_host.contains_key(&note.thread) {
                return Ok(note);
            }
            self.put_by(note);
        }
    }

    /// Have a stub call clone(2). What it returned; EFAULT: it did not call at all, and only said so.
    fn order(&mut self, parent: ThreadId, call: &Op) -> Result<i64> {
        let results = self.run(parent, &[*call], vec![Expected::call(call)])?;
        let has_called = self.thread(parent)?.expected.is_empty();
        match results[0] {
            n if n < 0 => Err(Errno(i32::try_from(-n).unwrap_or(Errno::FAULT.0))),
            n if has_called => Ok(n),
            _ => Err(Errno::FAULT),
        }
    }

    pub(super) fn fork_stub(&mut self, parent: ThreadId, made: Option<&Registers>) -> Result<(SpaceId, ThreadId)> {
        self.settle(parent)?;
        let token = token()?;
        let inside = self.order(parent, &ops::fork(token))?;
        self.deliver(parent, made, (inside, token)).map_err(|errno| match errno {
            // The kernel's own descriptors, and the host's time, are none of the guest's.
            Errno::MFILE | Errno::NFILE | Errno::TIMEDOUT => Errno::AGAIN,
            other => other,
        })
    }

    pub(super) fn fork_thread(&mut self, beside: ThreadId) -> Result<ThreadId> {
        self.settle(beside)?;
        let space_id = self.thread(beside)?.space;
        let space = self.spaces.get_mut(&space_id).ok_or(Errno::SRCH)?;
        let index = match space.resting.len() {
            n if n > SLOT_REST || space.next_slot == layout::SLOT_COUNT => {
                space.resting.pop_front().ok_or(Errno::AGAIN)?
            }
            _ => {
                space.next_slot += 1;
                space.next_slot - 1
            }
        };
        space.threads += 1;
        let slot = Slot::map(space.slots.as_fd(), index).map_err(errno)?;
        slot.prepare_stack();
        if !slot.copy_frame(&self.thread(beside)?.slot) {
            return Err(Errno::FAULT);
        }
        let token = token()?;
        let inside = self.order(beside, &ops::new_thread(slot.address + layout::SLOT_SIZE - 64, token))?;
        let bell = self.wait_for_stranger(CALL_DOORBELL, token)?;
        let id = ThreadId(self.next);
        self.next += 1;
        let waiting = Some(Waiting::Bell(bell.id));
        let owns_gs = self.thread(beside)?.owns_gs;
        let in_proc = if self.numbers_inside { inside as i32 } else { bell.thread };
        let mut thread = Thread { waiting, owns_gs, in_proc, ..Thread::new(bell.thread, space_id, index, slot) };
        if !owns_gs {
            thread.staged.get_mut().copies.push(ops::set_gs(thread.slot.address));
        }
        self.add_thread(id, thread);
        Ok(id)
    }
}

/// Of an order: nobody guesses it.
fn token() -> Result<u64> {
    let mut bytes = [0; 8];
    clock::random(&mut bytes).map_err(errno)?;
    Ok(u64::from_le_bytes(bytes))
}
