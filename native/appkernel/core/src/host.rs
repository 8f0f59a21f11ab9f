//! What the core asks of the host beside running guest code.

use std::sync::Arc;

use drupe_appkernel_abi::Result;
use drupe_appkernel_vfs::proc::System;
use drupe_appkernel_vfs::{Backings, ClockId, Context, Events, OpenFile, Timestamp};

/// Words of the auxiliary vector that the processor decides (getauxval(3)).
#[derive(Clone, Copy, Debug, Default)]
pub struct Processor {
    pub hwcap: u64,
    pub hwcap2: u64,
    pub signal_stack_bytes: u64,
}

/// Clocks, randomness, descriptors that the pod was given.
pub trait Host: Send + Sync {
    fn now(&self, clock: ClockId) -> Timestamp;

    fn random(&self, out: &mut [u8]);

    /// A watched descriptor has become ready: `Event::Ready`.
    fn ready(&self, word: u64, events: Events);

    /// Move what lies between objects of the kernel's and the host (terminals). True: somebody may be able to go on.
    fn pump(&self) -> bool {
        false
    }

    /// socket(2) in the pod's network; None: it has none beyond itself. `kind` with its flags, but for SOCK_CLOEXEC.
    fn socket(&self, _context: &Context, _domain: u64, _kind: u64, _protocol: u64) -> Option<Result<Arc<OpenFile>>> {
        None
    }

    /// What /proc/net/NAME says of the pod's network; None: it has none beyond itself.
    fn network_file(&self, _name: &str) -> Option<Vec<u8>> {
        None
    }

    fn backings(&self) -> Arc<dyn Backings>;

    fn processor(&self) -> Processor;

    /// Memory that the pod may have, and what of it is free.
    fn memory_bytes(&self) -> (u64, u64);

    /// How many processors the pod may use.
    fn processors(&self) -> usize;

    /// What procfs says of the machine, as far as it does not change.
    fn system(&self) -> System;

    /// A line for whoever looks after the pod.
    fn log(&self, line: &str);
}
