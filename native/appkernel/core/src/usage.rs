//! What processes have used, as getrusage(2) and wait4(2) tell it.

use crate::encode;
use crate::kernel::Kernel;
use crate::mm::MmId;
use crate::task::Pid;

/// Of one process, or of several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_ns: u64,
    /// The most memory that one of them had at once.
    pub peak_bytes: u64,
    pub minor_faults: u64,
    pub major_faults: u64,
}

impl Usage {
    #[must_use]
    pub fn and(self, other: Usage) -> Usage {
        Usage {
            cpu_ns: self.cpu_ns.saturating_add(other.cpu_ns), // a damaged snapshot may say anything
            peak_bytes: self.peak_bytes.max(other.peak_bytes),
            minor_faults: self.minor_faults.saturating_add(other.minor_faults),
            major_faults: self.major_faults.saturating_add(other.major_faults),
        }
    }

    pub(crate) fn to_words(self) -> [u64; 4] {
        [self.cpu_ns, self.peak_bytes, self.minor_faults, self.major_faults]
    }

    pub(crate) fn from_words([cpu_ns, peak_bytes, minor_faults, major_faults]: [u64; 4]) -> Usage {
        Usage { cpu_ns, peak_bytes, minor_faults, major_faults }
    }

    /// struct rusage; how much of the time was spent for the system, nobody counts.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        const PEAK: usize = 4;
        const FAULTS: usize = 8;
        let mut words = [0u64; 18];
        (words[0], words[1]) = (self.cpu_ns / 1_000_000_000, self.cpu_ns % 1_000_000_000 / 1000);
        words[PEAK] = self.peak_bytes / 1024;
        (words[FAULTS], words[FAULTS + 1]) = (self.minor_faults, self.major_faults);
        encode::words(&words)
    }
}

impl Kernel {
    /// Of a process until now; without that of its children.
    pub(crate) fn usage(&self, pid: Pid) -> Usage {
        let Some(process) = self.tasks.processes.get(&pid) else { return Usage::default() };
        let live = self.mms.get(&process.mm).filter(|_| process.exit.is_none());
        process.used.and(live.map(|mm| self.platform.usage(mm.space)).unwrap_or_default())
    }

    /// A process is about to leave a space, which others may go on in: their time and faults are not its own.
    pub(crate) fn used_in(&self, id: MmId) -> Usage {
        let Some(mm) = self.mms.get(&id) else { return Usage::default() };
        let all = self.platform.usage(mm.space);
        match mm.users {
            1 => all,
            _ => Usage { peak_bytes: all.peak_bytes, ..Usage::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_have_the_sum_of_all_but_the_largest_peak() {
        let one = Usage { cpu_ns: 1_500_002_000, peak_bytes: 8192, minor_faults: 3, major_faults: 1 };
        let other = Usage { cpu_ns: 1_000, peak_bytes: 4096, minor_faults: 4, major_faults: 0 };
        let bytes = one.and(other).to_bytes();
        let word = |at: usize| u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().unwrap());
        assert_eq!(bytes.len(), 144);
        assert_eq!((word(0), word(1), word(4), word(8), word(9)), (1, 500_003, 8, 7, 1));
    }
}
