//! Processor time of single containers: whose programs have had their share of a period rest until there is more.
//!
//! The host's cgroups cannot do it: they would stop a stub at any time, and the kernel waits for its stubs. Who rests here stands
//! where the kernel has put it, and holds nobody up. What the kernel does for a program is not counted.

use std::collections::BTreeMap;

use crate::kernel::Kernel;
use crate::mm::MmId;

/// How long may pass between two looks at those who run, and at those who should not.
const LONGEST_LOOK_NS: u64 = 10_000_000;
const SHORTEST_LOOK_NS: u64 = 1_000_000;

/// By container.
pub(crate) type Quotas = BTreeMap<u32, Quota>;

#[derive(Debug, Default)]
pub(crate) struct Quota {
    quota_ns: u64,
    period_ns: u64,
    /// Of this period.
    begun_ns: u64,
    /// In this period, with what earlier ones have left to pay.
    spent_ns: u64,
    /// Spent by spaces that are gone, and at the last look by all.
    gone_ns: u64,
    total_ns: u64,
    look_at_ns: u64,
    /// Nobody runs: the next look has time until something happens.
    is_idle: bool,
}

impl Quota {
    /// Count what was spent since the last look; whether there is nothing left of the share.
    fn count(&mut self, total_ns: u64, now_ns: u64) -> bool {
        self.spent_ns += total_ns.saturating_sub(self.total_ns);
        self.total_ns = total_ns;
        let periods = now_ns.saturating_sub(self.begun_ns) / self.period_ns;
        self.begun_ns += periods * self.period_ns;
        self.spent_ns = self.spent_ns.saturating_sub(periods.saturating_mul(self.quota_ns));
        self.spent_ns >= self.quota_ns
    }
}

impl Kernel {
    /// Have programs of a container run for so long in each period at most; None: for as long as they like.
    pub fn bound_time(&mut self, container: u32, quota: Option<(u64, u64)>) {
        let (begun_ns, total_ns) = (self.timers.now_ns(), self.time_of(container));
        match quota {
            Some((quota_ns, period_ns)) => {
                let (quota_ns, period_ns) = (quota_ns.max(1), period_ns.max(1));
                let new = Quota { quota_ns, period_ns, begun_ns, total_ns, ..Quota::default() };
                let known = self.quotas.entry(container).or_default();
                let gone_ns = known.gone_ns;
                *known = Quota { gone_ns, ..new };
            }
            None => drop(self.quotas.remove(&container)),
        }
        self.let_run(container);
    }

    fn time_of(&self, container: u32) -> u64 {
        let inside = self.tasks.processes.values().filter(|p| p.container == container && p.exit.is_none());
        let mms: std::collections::BTreeSet<MmId> = inside.map(|p| p.mm).collect();
        let live = mms.iter().filter_map(|mm| self.mms.get(mm)).map(|mm| self.platform.cpu_ns(mm.space));
        live.sum::<u64>() + self.quotas.get(&container).map_or(0, |quota| quota.gone_ns)
    }

    /// A space of the container is about to go.
    pub(crate) fn note_time(&mut self, container: u32, mm: MmId) {
        let Some(quota) = self.quotas.get_mut(&container) else { return };
        quota.gone_ns += self.mms.get(&mm).map_or(0, |mm| self.platform.cpu_ns(mm.space));
    }

    /// Have those rest who have had their share, and those go on who have some again. When to look again; None: when something
    /// has happened.
    pub fn govern(&mut self) -> Option<u64> {
        if self.quotas.is_empty() {
            return None;
        }
        let now_ns = self.timers.now_ns();
        let due: Vec<u32> = self.quotas.iter().filter(|(_, q)| q.look_at_ns <= now_ns).map(|(of, _)| *of).collect();
        due.into_iter().for_each(|container| self.look(container, now_ns));
        let busy = self.quotas.values().filter(|quota| !quota.is_idle);
        busy.map(|quota| quota.look_at_ns.saturating_sub(now_ns)).min()
    }

    fn look(&mut self, container: u32, now_ns: u64) {
        let (total_ns, moves) = (self.time_of(container), self.moving_in(Some(container)).next().is_some());
        let Some(quota) = self.quotas.get_mut(&container) else { return };
        let has_run = total_ns > quota.total_ns;
        let is_over = quota.count(total_ns, now_ns);
        let left_ns = quota.quota_ns.saturating_sub(quota.spent_ns);
        let wait_ns = match (is_over, has_run) {
            (true, _) => quota.begun_ns.saturating_add(quota.period_ns).saturating_sub(now_ns).min(LONGEST_LOOK_NS),
            (false, true) => left_ns.min(LONGEST_LOOK_NS) / 2, // there may be several processors
            (false, false) => LONGEST_LOOK_NS,
        };
        quota.look_at_ns = now_ns + wait_ns.max(SHORTEST_LOOK_NS);
        quota.is_idle = !is_over && !moves;
        match is_over {
            true => self.slow_down(container, has_run),
            false => self.let_run(container),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_spent_and_what_is_beyond_it_is_paid_back() {
        let mut quota = Quota { quota_ns: 20, period_ns: 100, begun_ns: 1000, ..Quota::default() };
        assert!(!quota.count(10, 1050));
        assert!(quota.count(45, 1090));
        assert!(quota.count(45, 1100)); // 25 are left of 45
        assert!(!quota.count(45, 1200));
        assert_eq!((quota.spent_ns, quota.begun_ns), (5, 1200));
        assert!(!quota.count(45, 99_000));
        assert_eq!(quota.spent_ns, 0);
    }
}
