//! Which platform a pod's kernel has: `trap` unless `kvm` was asked for, which is never taken because /dev/kvm is there.

use std::io;

use drupe_appkernel_core::platform::Platform;
use drupe_appkernel_core::Host;
use drupe_appkernel_hostsys::identity::Identity;
use drupe_appkernel_hostsys::kvm::Kvm;
use drupe_appkernel_kvm::Machines;

use crate::machine::Machine;
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

    /// `identity`: who stubs are. `machine`: the host's, as the pod may use it.
    pub fn start(&self, machine: &Machine, identity: Option<&Identity>) -> io::Result<Box<dyn Platform>> {
        let poller = machine.watched.poller();
        match self {
            Choice::Trap => Ok(Box::new(Stubs::start_with(poller, identity, false)?)),
            Choice::Kvm(kvm) => {
                let guests_bytes = machine.memory_bytes().0 / 8 * 7;
                Ok(Box::new(Machines::start(kvm, poller, machine.processors(), guests_bytes)?))
            }
        }
    }
}
