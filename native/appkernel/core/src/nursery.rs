//! Containers with limits of their own on the host: all their spaces are forked from one that does nothing else, which
//! stands where those limits hold (a cgroup of the host's); what is forked from it stands there, too.

use std::collections::{BTreeMap, BTreeSet};

use drupe_appkernel_abi::{Errno, Result};

use crate::kernel::Kernel;
use crate::platform::{SpaceId, ThreadId};
use crate::task::Tid;

/// By container.
pub(crate) type Nurseries = BTreeMap<u32, (SpaceId, ThreadId)>;

impl Kernel {
    /// Have all that runs in a container, now and later, stand where `take` moves it: told the host's number of a process.
    pub fn place(&mut self, container: u32, take: &mut dyn FnMut(i32) -> Result<()>) -> Result<()> {
        let nursery = match self.nurseries.get(&container) {
            Some((space, _)) => *space,
            None => {
                let (space, thread) = self.platform.new_space()?;
                self.nurseries.insert(container, (space, thread));
                space
            }
        };
        // Its spaces are no processes of the host's: 0 would be whoever asks.
        if self.platform.host_process(nursery) == 0 {
            self.unplace(container);
            return Err(Errno::NOTSUP);
        }
        let inside = self.tasks.processes.values().filter(|p| p.container == container && p.exit.is_none());
        let spaces: BTreeSet<SpaceId> =
            inside.filter_map(|p| self.mms.get(&p.mm)).map(|mm| mm.space).chain([nursery]).collect();
        for space in spaces {
            match take(self.platform.host_process(space)) {
                Err(Errno::SRCH) if space != nursery => {} // it has just been killed
                done => done?,
            }
        }
        Ok(())
    }

    /// A container is gone.
    pub fn unplace(&mut self, container: u32) {
        if let Some((space, _)) = self.nurseries.remove(&container) {
            self.platform.end_space(space);
        }
    }

    /// An empty space for a program. Of a container whose nursery the host has killed there is none: its limits would not hold.
    pub(crate) fn empty_space(&mut self, tid: Tid) -> Result<(SpaceId, ThreadId)> {
        let nursery = self.nurseries.get(&self.process(tid)?.container).map(|(_, thread)| *thread);
        match nursery {
            Some(thread) => self.platform.new_space_beside(thread).map_err(|_| Errno::NOMEM),
            None => self.platform.new_space(),
        }
    }
}
