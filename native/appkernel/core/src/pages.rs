//! What memory takes, range by range, for /proc/PID/smaps: the host counts it, where it says so.

use drupe_appkernel_vfs::proc::{Area, COUNTS};
use drupe_appkernel_vfs::Path;

use crate::kernel::Kernel;
use crate::pids;
use crate::task::{Process, Tid};

/// The first address of a line that begins a range, as in "7f00-7f10 rw-p …".
fn start(line: &str) -> Option<u64> {
    let (range, _) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    u64::from_str_radix(end, 16).ok()?;
    u64::from_str_radix(start, 16).ok()
}

/// Which of `COUNTS` a line tells, and how many KiB.
fn count(line: &str) -> Option<(usize, u64)> {
    let (name, value) = line.split_once(':')?;
    let kib = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some((COUNTS.iter().position(|known| *known == name)?, kib))
}

/// Add what the host says of its ranges to those in which they begin; they may be smaller there.
pub(crate) fn fill(areas: &mut [Area], report: &str) {
    let mut at = None;
    for line in report.lines() {
        if let Some(start) = start(line) {
            let after = areas.partition_point(|area| area.start <= start);
            at = after.checked_sub(1).filter(|&index| start < areas[index].end);
        } else if let (Some(index), Some((which, kib))) = (at, count(line)) {
            areas[index].counts_kib[which] += kib;
        }
    }
}

impl Kernel {
    /// The process that a descriptor's file of procfs is about, and the file's name.
    fn is_about(&self, tid: Tid, fd: u64) -> Option<(&Process, Vec<u8>)> {
        let file = self.any_file(tid, fd).ok()?;
        let path: &Path = file.path()?;
        let directory = String::from_utf8(path.dentry.parent()?.name()).ok()?;
        let number = pids::known(self.view(tid), directory.parse().ok()?);
        let process = self.process(number).ok().or_else(|| self.tasks.processes.get(&number))?;
        Some((process, path.dentry.name()))
    }

    /// Have procfs know what is in a process's memory, and how much, if the caller is about to read that.
    pub(crate) fn look_into(&self, tid: Tid, fd: u64) {
        let Some((process, name)) = self.is_about(tid, fd) else { return };
        match (name.as_slice(), self.mms.get(&process.mm)) {
            (b"smaps" | b"smaps_rollup", Some(mm)) => {
                self.census.fill_areas(process.pid, &self.platform.memory_report(mm.space));
            }
            (b"stat" | b"status", _) => self.census.show_usage(process.pid, self.usage(process.pid)),
            (b"cmdline", _) => self.census.show_texts(process.pid, 0, self.command_line_of(process)),
            (b"environ", _) => self.census.show_texts(process.pid, 1, self.environment_of(process)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_the_hosts_are_added_up() {
        let area = |start, end| Area { start, end, ..Area::default() };
        let mut areas = [area(0x1000, 0x4000), area(0x8000, 0x9000)];
        let report = "00001000-00002000 rw-p 00000000 00:00 0 \nSize: 4 kB\nRss:   4 kB\nVmFlags: rd\n\
            00002000-00003000 r--p 00000000 00:00 0 [x]\nRss: 4 kB\nPss: 1 kB\n00008000-00009000 r--p 0 00:00 0\nSwap: 8 kB\n\
            7f000000-7f001000 r--p 0 00:00 0\nRss: 99 kB\nnonsense\n";
        fill(&mut areas, report);
        let of = |index: usize, name| areas[index].counts_kib[COUNTS.iter().position(|known| *known == name).unwrap()];
        assert_eq!((of(0, "Rss"), of(0, "Pss"), of(1, "Rss"), of(1, "Swap")), (8, 1, 0, 8));
    }
}
