//! Processes of containers, and what the machine as a whole is doing, from proc(5).

use crate::agent::Agent;
use crate::cgroup::{keyed, Cgroup};
use crate::fault::Reply;
use crate::proto::guest::{MetricsResponse, Process};
use std::collections::BTreeSet;
use std::fs::read_to_string;

/// USER_HZ, in which /proc counts, whatever the kernel's own clock is (time(7)).
const TICK_NS: u64 = 10_000_000;
const NANOS: u64 = 1_000_000_000;

/// Those of a container, by pid; one that ends meanwhile is left out.
pub fn of(agent: &Agent, id: &str) -> Reply<Vec<Process>> {
    let mut pids = agent.with(id, |container| Ok(container.cgroup.pids()))?;
    pids.sort_unstable();
    let booted_s = keyed(&read_to_string("/proc/stat").unwrap_or_default(), "btime");
    Ok(pids.into_iter().filter_map(|pid| look(pid, booted_s)).collect())
}

fn look(pid: u32, booted_s: u64) -> Option<Process> {
    let file = |name: &str| read_to_string(format!("/proc/{pid}/{name}"));
    let stat = Stat::parse(&file("stat").ok()?)?;
    let status = file("status").ok()?;
    let arguments = file("cmdline").unwrap_or_default();
    let command = match arguments.trim_end_matches('\0') {
        "" => format!("[{}]", stat.name),
        arguments => arguments.replace('\0', " "),
    };
    Some(Process {
        pid,
        ppid: stat.parent,
        uid: field(&status, "Uid:") as u32,
        command,
        state: stat.state,
        rss_bytes: field(&status, "VmRSS:") << 10,
        cpu_ns: stat.cpu_ticks * TICK_NS,
        started_unix_ns: (booted_s * NANOS + stat.begun_ticks * TICK_NS) as i64,
    })
}

struct Stat {
    name: String,
    state: String,
    parent: u32,
    session: u32,
    cpu_ticks: u64,
    begun_ticks: u64,
}

impl Stat {
    /// proc_pid_stat(5): the name is in parentheses, and may hold some itself.
    fn parse(text: &str) -> Option<Self> {
        let (begin, end) = (text.find('(')?, text.rfind(')')?);
        let fields: Vec<&str> = text.get(end + 1..)?.split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        Some(Stat {
            name: text.get(begin + 1..end)?.to_string(),
            state: fields.first()?.to_string(),
            parent: number(1)? as u32,
            session: number(3)? as u32,
            cpu_ticks: number(11)? + number(12)?,
            begun_ticks: number(19)?,
        })
    }
}

/// The first number after `key` at the beginning of a line; 0 when it is not there.
fn field(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// `known` and all that descends from them: by parents, and by their sessions, in which orphans stay.
pub fn offspring(cgroup: &Cgroup, known: &BTreeSet<u32>) -> BTreeSet<u32> {
    let stat = |pid: u32| Stat::parse(&read_to_string(format!("/proc/{pid}/stat")).ok()?);
    let all: Vec<(u32, Stat)> = cgroup.pids().into_iter().filter_map(|pid| Some((pid, stat(pid)?))).collect();
    let mut found = known.clone();
    loop {
        let is_ours = |stat: &Stat| found.contains(&stat.parent) || found.contains(&stat.session);
        let more: BTreeSet<u32> = all.iter().filter(|(_, stat)| is_ours(stat)).map(|(pid, _)| *pid).collect();
        if more.is_subset(&found) {
            return found;
        }
        found.extend(more);
    }
}

/// The machine's figures.
pub fn metrics(agent: &Agent) -> MetricsResponse {
    let text = |path: &str| read_to_string(path).unwrap_or_default();
    let memory = text("/proc/meminfo");
    let count = agent.state().containers.values().map(|container| container.cgroup.pids().len()).sum::<usize>();
    MetricsResponse {
        memory_total_bytes: field(&memory, "MemTotal:") << 10,
        memory_available_bytes: field(&memory, "MemAvailable:") << 10,
        agent_rss_bytes: field(&text("/proc/self/status"), "VmRSS:") << 10,
        cpu_busy_ns: busy_ticks(&text("/proc/stat")) * TICK_NS,
        processes: count as u32,
        uptime_s: text("/proc/uptime").split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0),
    }
}

/// "cpu  user nice system idle iowait irq softirq steal …", without idle, iowait, and what a hypervisor took.
fn busy_ticks(stat: &str) -> u64 {
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let fields: Vec<u64> = fields.map(|field| field.parse().unwrap_or(0)).collect();
    [0, 1, 2, 5, 6].iter().filter_map(|at| fields.get(*at)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = "42 (a) b (c) S 7 42 42 0 -1 4194304 100 0 0 0 30 12 0 0 20 0 1 0 5000 1000 50";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.name.as_str(), stat.state.as_str(), stat.parent), ("a) b (c", "S", 7));
        assert_eq!((stat.cpu_ticks, stat.begun_ticks), (42, 5000));
        assert!(Stat::parse("42 (a) S 7").is_none() && Stat::parse("").is_none());
    }

    #[test]
    fn this_process_is_seen_as_it_is() {
        let own = look(std::process::id(), 0).unwrap();
        assert!(own.rss_bytes > 0 && own.ppid > 0 && !own.command.is_empty());
        assert_eq!(busy_ticks("cpu  1 2 3 100 100 4 5 100 0 0\n"), 15);
    }
}
