//! What the platform knows of a thread and of a space.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use drupe_appkernel_abi::Registers;
use drupe_appkernel_core::platform::SpaceId;
use drupe_appkernel_hostsys::slot::{Op, Slot};

use crate::ops::Expected;
use crate::pace::Pace;

/// How a thread waits for our answer.
#[derive(Clone, Copy)]
pub(super) enum Waiting {
    /// In the doorbell of this number.
    Bell(u64),
    /// Looking at its slot.
    Slot,
}

pub(super) struct Thread {
    pub(super) host: i32,
    /// Its number in /proc, as the host told whoever made it.
    pub(super) in_proc: i32,
    pub(super) space: SpaceId,
    pub(super) index: u64,
    pub(super) slot: Slot,
    pub(super) waiting: Option<Waiting>,
    pub(super) pace: Pace,
    pub(super) expected: VecDeque<Expected>,
    /// An answer that found nobody in the doorbell: the host took the thread out of it (a freezer), and it rings again.
    pub(super) unheard: Option<i64>,
    /// A call of its was put by, to be served later.
    pub(super) is_put_by: bool,
    /// Has called without a signal: there is no frame of the host's.
    pub(super) is_fast: bool,
    /// The guest has set its gs base.
    pub(super) owns_gs: bool,
    /// What the stub has brought along: the guest's address, and bytes.
    pub(super) input: (u64, Vec<u8>),
    pub(super) staged: RefCell<Staged>,
}

/// What the stub is to write to the guest's memory when the thread goes on.
#[derive(Default)]
pub(super) struct Staged {
    pub(super) copies: Vec<Op>,
    pub(super) size: usize,
}

impl Thread {
    pub(super) fn new(host: i32, space: SpaceId, index: u64, slot: Slot) -> Thread {
        Thread {
            host,
            in_proc: host,
            space,
            index,
            slot,
            waiting: None,
            pace: Pace::default(),
            expected: VecDeque::new(),
            unheard: None,
            is_put_by: false,
            is_fast: false,
            owns_gs: false,
            input: Default::default(),
            staged: RefCell::default(),
        }
    }

    /// It has a frame of the host's now, made in the stub: the guest's registers are elsewhere.
    pub(super) fn adopt(&mut self) {
        self.is_fast = false;
        let _broken = self.slot.set_registers(&self.slot.fast_registers());
    }

    /// It was kicked before its call, or while it looked whether a futex changes: it is at its call still.
    pub(super) fn leave_loop(&self) {
        let Some(registers) = self.slot.registers() else { return };
        let _broken = self.slot.set_registers(&Registers { rip: registers.r11, ..registers });
    }

    pub(super) fn take_staged(&mut self) -> Vec<Op> {
        let staged = self.staged.get_mut();
        staged.size = 0;
        std::mem::take(&mut staged.copies)
    }
}

pub(super) struct Space {
    pub(super) process: i32,
    /// Its number in the /proc that `Stubs::proc` is.
    pub(super) in_proc: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) slots: OwnedFd,
    pub(super) next_slot: u64,
    pub(super) resting: VecDeque<u64>,
    pub(super) threads: u32,
    pub(super) lane: u32,
}
