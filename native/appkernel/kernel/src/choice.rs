//! Which platform a pod's kernel has: `trap` unless `kvm` was asked for, which is never taken because /dev/kvm is there.

use std::io;
use std::sync::Arc;

use drupe_appkernel_core::platform::Platform;
use drupe_appkernel_hostsys::identity::Identity;
use drupe_appkernel_hostsys::kvm::Kvm;
use drupe_appkernel_hostsys::poll::Poller;
use drupe_appkernel_kvm::Machines;

use crate::trap::Stubs;

/// Has the kernel take this platform where the command line says nothing; for tests.
const VARIABLE: &str = "DRUPE_APPKERNEL_PLATFORM";

/// The platform, with what of the host it must have before the kernel is confined.
pub enum Choice {
    Trap,
    Kvm(Kvm),
}

impl Choice {
    /// `wanted`: its name; "": the environment's, else `trap`. What cannot be had is refused, and nothing else taken instead.
    pub fn of(wanted: &str) -> Result<Choice, String> {
        let named = match wanted {
            "" => std::env::var(VARIABLE).unwrap_or_default(),
            name => name.to_string(),
        };
        match named.as_str() {
            "" | "trap" => Ok(Choice::Trap),
            "kvm" => Kvm::open().map(Choice::Kvm).map_err(|error| format!("platform kvm: /dev/kvm: {error}")),
            other => Err(format!("no platform {other} (trap, kvm)")),
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Choice::Trap => "trap",
            Choice::Kvm(_) => "kvm",
        }
    }

    pub fn is_kvm(&self) -> bool {
        matches!(self, Choice::Kvm(_))
    }

    /// `identity`: who stubs are. `memory_bytes`: what guests may have together.
    pub fn start(
        &self,
        poller: Arc<Poller>,
        identity: Option<&Identity>,
        processors: usize,
        memory_bytes: u64,
    ) -> io::Result<Box<dyn Platform>> {
        match self {
            Choice::Trap => Ok(Box::new(Stubs::start_with(poller, identity)?)),
            Choice::Kvm(kvm) => Ok(Box::new(Machines::start(kvm, poller, processors, memory_bytes)?)),
        }
    }
}
