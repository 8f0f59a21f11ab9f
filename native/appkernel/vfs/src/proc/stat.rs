//! The texts of a process's files.

use std::fmt::Write;

use super::{Area, Process, COUNTS};
use crate::kind::split_device;
use crate::open::OpenFile;

/// Place of rsslim among the numbers after the state.
const RSS_LIMIT_FIELD: usize = 21;
const PAGE_BYTES: u64 = 4096;
/// Where names start in a line of /proc/PID/maps.
const MAPS_NAME_COLUMN: usize = 73;

pub(super) fn line(text: &[u8]) -> Vec<u8> {
    [text, b"\n"].concat()
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// /proc/PID/stat: 52 fields; what is not known is 0, as Linux says it to those who may not know.
pub(super) fn stat(p: &Process) -> Vec<u8> {
    let signals = |index: usize| p.signals[index] & 0x7fff_ffff;
    let (terminal, foreground, priority) = (p.terminal, p.terminal_group, 20 + p.nice);
    let head = [i64::from(p.parent), i64::from(p.group), i64::from(p.session), terminal as i64, i64::from(foreground)];
    let times =
        [p.user_ticks, p.system_ticks, p.children_user_ticks, p.children_system_ticks].map(|ticks| ticks as i64);
    let middle = [i64::from(priority), i64::from(p.nice), i64::from(p.thread_count), 0, p.start_ticks as i64];
    let memory = [p.size_bytes as i64, (p.resident_bytes / PAGE_BYTES) as i64];
    let sets = [signals(0), signals(2), signals(3), signals(4)].map(|set| set as i64);
    let mut fields: Vec<i64> = head.to_vec();
    fields.push(0); // flags
    fields.extend(p.faults.map(|count| count as i64));
    fields.extend(times);
    fields.extend(middle);
    fields.extend(memory);
    fields.extend([0; 5]); // addresses of code and stack
    fields.extend(sets);
    fields.extend([0, 0, 0, i64::from(p.exit_signal), 0, 0, 0, 0, 0, 0]);
    fields.extend([0; 8]);
    let mut numbers: Vec<String> = fields.iter().map(i64::to_string).collect();
    numbers.insert(RSS_LIMIT_FIELD, u64::MAX.to_string());
    let (state, name) = (char::from(p.state), lossy(&p.name));
    format!("{} ({name}) {state} {}\n", p.tid, numbers.join(" ")).into_bytes()
}

pub(super) fn statm(p: &Process) -> Vec<u8> {
    let (size, resident) = (p.size_bytes / PAGE_BYTES, p.resident_bytes / PAGE_BYTES);
    format!("{size} {resident} 0 0 0 {size} 0\n").into_bytes()
}

fn state_word(state: u8) -> &'static str {
    match state {
        b'R' => "R (running)",
        b'S' => "S (sleeping)",
        b'D' => "D (disk sleep)",
        b'T' => "T (stopped)",
        b't' => "t (tracing stop)",
        b'Z' => "Z (zombie)",
        _ => "X (dead)",
    }
}

/// /proc/PID/status.
pub(super) fn status(p: &Process) -> Vec<u8> {
    let ids = |ids: [u32; 4]| ids.map(|id| id.to_string()).join("\t");
    let groups: String = p.groups.iter().map(|group| format!("{group} ")).collect();
    let kib = |bytes: u64| format!("{:8} kB", bytes / 1024);
    let mut lines = vec![
        ("Name", lossy(&p.name)),
        ("Umask", format!("{:04o}", p.umask)),
        ("State", state_word(p.state).into()),
        ("Tgid", p.pid.to_string()),
        ("Ngid", "0".into()),
        ("Pid", p.tid.to_string()),
        ("PPid", p.parent.to_string()),
        ("TracerPid", "0".into()),
        ("Uid", ids(p.uids)),
        ("Gid", ids(p.gids)),
        ("FDSize", p.fd_slots.to_string()),
        ("Groups", groups),
        ("NStgid", p.pid.to_string()),
        ("NSpid", p.tid.to_string()),
        ("NSpgid", p.group.to_string()),
        ("NSsid", p.session.to_string()),
    ];
    if p.state != b'Z' {
        let sizes = [
            ("VmPeak", p.peak_bytes),
            ("VmSize", p.size_bytes),
            ("VmLck", p.locked_bytes),
            ("VmPin", 0),
            ("VmHWM", p.peak_resident_bytes.max(p.resident_bytes)),
            ("VmRSS", p.resident_bytes),
            ("VmData", p.data_bytes),
            ("VmStk", p.stack_bytes),
            ("VmExe", p.code_bytes),
            ("VmSwap", 0),
        ];
        lines.extend(sizes.map(|(name, bytes)| (name, kib(bytes))));
    }
    lines.push(("Threads", p.thread_count.to_string()));
    let hex = |set: u64| format!("{set:016x}");
    lines.push(("SigQ", format!("{}/{}", p.signals[0].count_ones() + p.signals[1].count_ones(), p.pending_max)));
    lines.extend(["SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"].into_iter().zip(p.signals.map(hex)));
    lines.extend(["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].into_iter().zip(p.capabilities.map(hex)));
    lines.push(("NoNewPrivs", u32::from(p.no_new_privileges).to_string()));
    lines.push(("Seccomp", p.seccomp.to_string()));
    lines.push(("Seccomp_filters", p.filters.to_string()));
    lines.push(("Cpus_allowed", format!("{:x}", u64::MAX >> (64 - p.processors.clamp(1, 64)))));
    let last = p.processors.saturating_sub(1);
    lines.push(("Cpus_allowed_list", if last == 0 { "0".into() } else { format!("0-{last}") }));
    lines.extend([("Mems_allowed", "1".into()), ("Mems_allowed_list", "0".into())]);
    // How often the host has switched from one of its threads to another concerns nobody in the pod.
    lines.extend([("voluntary_ctxt_switches", "0".into()), ("nonvoluntary_ctxt_switches", "0".into())]);
    lines.iter().map(|(name, value)| format!("{name}:\t{value}\n")).collect::<String>().into_bytes()
}

fn counts(counts_kib: &[u64; COUNTS.len()]) -> String {
    COUNTS.iter().zip(counts_kib).map(|(name, kib)| format!("{:<15} {kib:>8} kB\n", format!("{name}:"))).collect()
}

/// /proc/PID/smaps.
pub(super) fn smaps(areas: &[Area]) -> Vec<u8> {
    let one = |area: &Area| {
        let size = (area.end - area.start) / 1024;
        let head = format!("Size:           {size:>8} kB\nKernelPageSize:        4 kB\nMMUPageSize:           4 kB\n");
        [maps(std::slice::from_ref(area)), head.into_bytes(), counts(&area.counts_kib).into_bytes()].concat()
    };
    areas.iter().flat_map(one).collect()
}

/// /proc/PID/smaps_rollup.
pub(super) fn smaps_rollup(areas: &[Area]) -> Vec<u8> {
    let mut all = [0; COUNTS.len()];
    areas.iter().flat_map(|area| area.counts_kib.iter().enumerate()).for_each(|(which, kib)| all[which] += kib);
    let (start, end) = (areas.first().map_or(0, |area| area.start), areas.last().map_or(0, |area| area.end));
    let whole = Area { start, end, name: b"[rollup]".to_vec(), ..Area::default() };
    [maps(&[whole]), counts(&all).into_bytes()].concat()
}

/// /proc/PID/maps.
pub(super) fn maps(areas: &[Area]) -> Vec<u8> {
    let mut out = Vec::new();
    for area in areas {
        let bit = |bit: u32, letter| if area.protection & bit != 0 { letter } else { '-' };
        let access: String =
            [bit(1, 'r'), bit(2, 'w'), bit(4, 'x'), if area.shared { 's' } else { 'p' }].iter().collect();
        let (major, minor) = split_device(area.device);
        let mut line = format!("{:08x}-{:08x} {access} {:08x} ", area.start, area.end, area.offset);
        let _ = write!(line, "{major:02x}:{minor:02x} {} ", area.inode); // to a String: cannot fail
        if !area.name.is_empty() {
            line.push_str(&" ".repeat(MAPS_NAME_COLUMN.saturating_sub(line.len())));
        }
        out.extend_from_slice(line.as_bytes());
        out.extend(area.name.iter().flat_map(|byte| if *byte == b'\n' { b"\\012".to_vec() } else { vec![*byte] }));
        out.push(b'\n');
    }
    out
}

const LIMITS: [(&str, &str); 16] = [
    ("Max cpu time", "seconds"),
    ("Max file size", "bytes"),
    ("Max data size", "bytes"),
    ("Max stack size", "bytes"),
    ("Max core file size", "bytes"),
    ("Max resident set", "bytes"),
    ("Max processes", "processes"),
    ("Max open files", "files"),
    ("Max locked memory", "bytes"),
    ("Max address space", "bytes"),
    ("Max file locks", "locks"),
    ("Max pending signals", "signals"),
    ("Max msgqueue size", "bytes"),
    ("Max nice priority", ""),
    ("Max realtime priority", ""),
    ("Max realtime timeout", "us"),
];

/// /proc/PID/limits.
pub(super) fn limits(limits: &[(u64, u64); 16]) -> Vec<u8> {
    let word = |value: u64| if value == u64::MAX { "unlimited".to_string() } else { value.to_string() };
    let row = |name: &str, soft: &str, hard: &str, unit: &str| {
        let width = if unit.is_empty() { 0 } else { 10 };
        format!("{name:<25} {soft:<20} {hard:<20} {unit:<width$}\n")
    };
    let mut out = row("Limit", "Soft Limit", "Hard Limit", "Units");
    for ((name, unit), (soft, hard)) in LIMITS.iter().zip(limits) {
        out.push_str(&row(name, &word(*soft), &word(*hard), unit));
    }
    out.into_bytes()
}

/// /proc/PID/fdinfo/FD.
pub(super) fn descriptor(close_on_exec: bool, file: &OpenFile) -> Vec<u8> {
    let flags = file.flags().0 | if close_on_exec { crate::OpenFlags::CLOEXEC } else { 0 };
    let (mount, inode) = file
        .path()
        .map_or((0, 0), |path| (path.mount.id(), path.inode().metadata().map_or(0, |metadata| metadata.inode)));
    let position = file.position();
    format!("pos:\t{position}\nflags:\t0{flags:o}\nmnt_id:\t{mount}\nino:\t{inode}\n").into_bytes()
}
