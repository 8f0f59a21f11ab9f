//! Who is to end first when memory is short: /proc/PID/oom_score, oom_score_adj, and oom_adj, by which older programs set that.

use drupe_appkernel_abi::{Errno, Result};

use super::{Process, System};

const MOST: i32 = 1000;
/// Of oom_adj: never; the last one.
const DISABLED: i32 = -17;
const OLD_MOST: i32 = 15;
const PAGE_BYTES: u64 = 4096;

/// One of the two files that set it: how they show it, understand what is written, and from where on less is for the
/// privileged.
pub(super) struct Way {
    pub show: fn(i32) -> i32,
    range: std::ops::RangeInclusive<i32>,
    take: fn(i32) -> i32,
    pub least: fn(i32) -> i32,
}

pub(super) static SCORE_ADJ: Way =
    Way { show: |score| score, range: -MOST..=MOST, take: |score| score, least: |now| now.min(0) };

pub(super) static ADJ: Way = Way {
    show: |score| (score * -DISABLED / MOST).min(OLD_MOST),
    range: DISABLED..=OLD_MOST,
    take: |old| if old == OLD_MOST { MOST } else { old * MOST / -DISABLED },
    least: |now| now,
};

impl Way {
    /// The value as oom_score_adj has it. EINVAL.
    pub fn parse(&self, data: &[u8]) -> Result<i32> {
        let text = std::str::from_utf8(data).map_err(|_| Errno::INVAL)?;
        let number: i32 = text.trim().parse().map_err(|_| Errno::INVAL)?;
        self.range.contains(&number).then(|| (self.take)(number)).ok_or(Errno::INVAL)
    }
}

/// /proc/PID/oom_score, as Linux reckons it from the memory that there is and what the process has of it.
pub(super) fn score(process: &Process, system: &System) -> Vec<u8> {
    let total = (system.memory_bytes / PAGE_BYTES).max(1) as i64;
    let adjusted = i64::from(process.oom_score_adj) * total / i64::from(MOST);
    let badness = (process.resident_bytes / PAGE_BYTES) as i64 + adjusted;
    let never = process.oom_score_adj == -MOST || process.state == b'Z';
    let points = if never { 0 } else { (1000 + badness * 1000 / total) * 2 / 3 };
    format!("{}\n", points.max(0)).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_file_has_a_coarser_scale() {
        let taken = |text: &[u8]| ADJ.parse(text).map(|score| (score, (ADJ.show)(score)));
        assert_eq!(taken(b"15\n"), Ok((1000, 15)));
        assert_eq!(taken(b"-17"), Ok((-1000, -17)));
        assert_eq!((taken(b"7\n"), taken(b"0")), (Ok((411, 6)), Ok((0, 0))));
        assert_eq!([taken(b"16"), taken(b"-18"), taken(b"x"), taken(b"")], [Err(Errno::INVAL); 4]);
    }

    #[test]
    fn the_score_grows_with_memory_and_with_what_was_set() {
        let of = |oom_score_adj, mib: u64, state| {
            let process = Process { oom_score_adj, resident_bytes: mib << 20, state, ..Process::default() };
            String::from_utf8(score(&process, &System { memory_bytes: 1 << 30, ..System::default() })).unwrap()
        };
        assert_eq!([of(0, 0, b'S'), of(0, 512, b'S'), of(1000, 0, b'S')], ["666\n", "1000\n", "1333\n"]);
        assert_eq!([of(-1000, 512, b'S'), of(-999, 0, b'S'), of(0, 9, b'Z')], ["0\n", "1\n", "0\n"]);
    }
}
