//! Processor time of single containers: whose programs have had their share of a period rest until there is more.
//!
//! The host's cgroups cannot do it: they would stop a stub at any time, and the kernel waits for its stubs. Who rests here stands
//! where the kernel has put it, and holds nobody up. What the kernel does for a program is not counted.

use std::collections::BTreeMap;

use crate::kernel::Kernel;
use crate::mm::MmId;
use crate::signal::SIGKILL;
use crate::task::Exit;

/// How long may pass between two looks at those who run, and at those who should not.
const LONGEST_LOOK_NS: u64 = 10_000_000;
const SHORTEST_LOOK_NS: u64 = 1_000_000;
/// Who is found to have run on so often does not want to hear: a call takes every program out of guest code as soon as the host
/// lets it run, unless it has blocked that by a jump into its stub.
const IGNORED_MAX: u32 = 100;

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
    /// How many were in guest code at the last look; and in how many looks some of these had run on, none had come, and all
    /// should rest and were called.
    moving: usize,
    ignored: u32,
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

    fn note_ignored(&mut self, is_over: bool, has_run: bool, moving: usize) {
        let none_came = is_over && moving > 0 && moving >= self.moving;
        self.ignored = if none_came { self.ignored + u32::from(has_run) } else { 0 };
        self.moving = moving;
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
        let (total_ns, moving) = (self.time_of(container), self.moving_in(Some(container)).count());
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
        quota.is_idle = !is_over && moving == 0;
        quota.note_ignored(is_over, has_run, moving);
        match is_over {
            true if quota.ignored > IGNORED_MAX => self.end_who_ignore(container),
            true => self.slow_down(container, has_run),
            false => self.let_run(container),
        }
    }

    /// It takes more than its share, and no call reaches it.
    fn end_who_ignore(&mut self, container: u32) {
        let running: Vec<_> = self.moving_in(Some(container)).map(|(pid, _)| pid).collect();
        for pid in running {
            self.host.log(&format!("process {pid} is ended: it runs on, beyond its quota, and cannot be called"));
            self.end_process(pid, Exit::Signal(SIGKILL));
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

    #[test]
    fn who_runs_on_without_coming_is_counted() {
        let mut quota = Quota { quota_ns: 20, period_ns: 100, ..Quota::default() };
        for (over, ran, moving, ignored) in
            [(true, true, 3, 1), (true, false, 3, 1), (true, true, 2, 0), (true, true, 2, 1), (false, true, 2, 0)]
        {
            quota.note_ignored(over, ran, moving);
            assert_eq!(quota.ignored, ignored);
        }
    }
}
