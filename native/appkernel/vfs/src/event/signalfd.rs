//! signalfd(2).

use std::any::Any;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use crate::file::{Context, File, Metadata};
use crate::kind::FileType;
use crate::sync::Mutex;
use crate::wait::{self, answer, when, Events, WaitQueue};

/// struct signalfd_siginfo.
pub const SIGINFO_BYTES: usize = 128;

/// The pending signals of whoever asks; the core implements it.
pub trait Signals: Send + Sync {
    /// Take the first signal of `mask` (bit n - 1: signal n) that is pending for the caller, as struct signalfd_siginfo.
    fn take(&self, mask: u64) -> Option<[u8; SIGINFO_BYTES]>;

    /// Whether one of `mask` is pending for the caller.
    fn is_pending(&self, mask: u64) -> bool;
}

/// Pending signals as something to read.
pub struct SignalFd {
    mask: Mutex<u64>,
    signals: Arc<dyn Signals>,
    queue: WaitQueue,
}

impl SignalFd {
    /// `queue`: the one that is told (READABLE) of each signal that becomes pending for the process.
    pub fn new(mask: u64, signals: Arc<dyn Signals>, queue: WaitQueue) -> Arc<Self> {
        Arc::new(Self { mask: Mutex::new(mask), signals, queue })
    }

    pub fn mask(&self) -> u64 {
        *self.mask.lock()
    }

    /// Whether it shows these signals.
    pub fn is_of<T: Signals>(&self, signals: &Arc<T>) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.signals), Arc::as_ptr(signals))
    }

    /// signalfd4(2) on a descriptor that exists.
    pub fn set_mask(&self, mask: u64) {
        *self.mask.lock() = mask;
        self.queue.wake(wait::READABLE);
    }
}

impl File for SignalFd {
    fn read(&self, _: &Context, _: u64, out: &mut [u8]) -> Result<usize> {
        let mask = *self.mask.lock();
        if out.len() < SIGINFO_BYTES {
            return Err(Errno::INVAL);
        }
        let mut filled = 0;
        for place in out.chunks_exact_mut(SIGINFO_BYTES) {
            let Some(info) = self.signals.take(mask) else { break };
            place.copy_from_slice(&info);
            filled += SIGINFO_BYTES;
        }
        if filled == 0 {
            return Err(Errno::AGAIN);
        }
        Ok(filled)
    }

    fn write(&self, _: &Context, _: u64, _: &[u8]) -> Result<usize> {
        Err(Errno::INVAL)
    }

    fn poll(&self, interest: Events) -> Events {
        let mask = *self.mask.lock();
        answer(interest, when(self.signals.is_pending(mask), wait::IN))
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn metadata(&self) -> Result<Metadata> {
        Ok(Metadata::new(FileType::Regular, 0o600))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
