//! eventfd(2).

use std::any::Any;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use crate::file::{Context, File, Metadata};
use crate::kind::FileType;
use crate::sync::Mutex;
use crate::wait::{self, answer, when, Events, WaitQueue};

const MAX: u64 = u64::MAX - 1;

/// A counter to wait for.
pub struct EventFd {
    pub(crate) count: Mutex<u64>,
    pub(crate) semaphore: bool,
    queue: WaitQueue,
}

impl EventFd {
    /// `semaphore`: EFD_SEMAPHORE, each read takes one.
    pub fn new(initial: u32, semaphore: bool) -> Arc<Self> {
        Arc::new(Self { count: Mutex::new(u64::from(initial)), semaphore, queue: WaitQueue::new() })
    }

    fn take(&self) -> Result<u64> {
        let mut count = self.count.lock();
        let taken = if self.semaphore { (*count).min(1) } else { *count };
        if taken == 0 {
            return Err(Errno::AGAIN);
        }
        *count -= taken;
        Ok(taken)
    }

    fn add(&self, value: u64) -> Result<()> {
        let mut count = self.count.lock();
        if value == u64::MAX {
            return Err(Errno::INVAL);
        }
        *count = count.checked_add(value).filter(|&sum| sum <= MAX).ok_or(Errno::AGAIN)?;
        Ok(())
    }
}

impl File for EventFd {
    fn read(&self, _: &Context, _: u64, out: &mut [u8]) -> Result<usize> {
        let out = out.get_mut(..8).ok_or(Errno::INVAL)?;
        out.copy_from_slice(&self.take()?.to_ne_bytes());
        self.queue.wake(wait::WRITABLE);
        Ok(8)
    }

    fn write(&self, _: &Context, _: u64, data: &[u8]) -> Result<usize> {
        let bytes = data.first_chunk::<8>().ok_or(Errno::INVAL)?;
        self.add(u64::from_ne_bytes(*bytes))?;
        self.queue.wake(wait::READABLE);
        Ok(8)
    }

    fn poll(&self, interest: Events) -> Events {
        let count = *self.count.lock();
        answer(interest, when(count > 0, wait::IN) | when(count < MAX, wait::OUT))
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
