//! Ops `namespaces` and `release`: namespaces made by a forked child and kept alive by bind mounts of their files.
//!
//! The child and the keeper talk over a socket pair: `user` (map me) and `go`, then `ok <pid>` or `error <errno> <what>`.
//! The child stays until its namespaces are bound, and then only reads the end of the socket.

use crate::mounts::unmount_all;
use crate::protocol::{reply, Failure, Fds, Fields, Outcome, Pairs, Reply};
use crate::server::{end, Asker, Child, Keeper};
use crate::timers::{Key, Timer};
use crate::watch::{Source, Watch};
use drupe_sys::epoll;
use drupe_sys::process::{self, Pid};
use drupe_sys::{mount, net, socket};
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(10);
/// Holds "pid start-time" of the first process of a PID namespace.
const INIT_FILE: &str = "init.pid";

const TYPES: [(&str, i32); 6] = [
    ("user", libc::CLONE_NEWUSER),
    ("pid", libc::CLONE_NEWPID),
    ("net", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("cgroup", libc::CLONE_NEWCGROUP),
];

/// sysctl(8) names that are separate in each namespace of a type; any other one is the host's.
const SYSCTLS: [(&str, i32); 10] = [
    ("net/", libc::CLONE_NEWNET),
    ("kernel/shm", libc::CLONE_NEWIPC),
    ("kernel/msg", libc::CLONE_NEWIPC),
    ("kernel/sem", libc::CLONE_NEWIPC),
    ("fs/mqueue/", libc::CLONE_NEWIPC),
    ("kernel/auto_msgmni", libc::CLONE_NEWIPC),
    ("kernel/hostname", libc::CLONE_NEWUTS),
    ("kernel/domainname", libc::CLONE_NEWUTS),
    ("user/", libc::CLONE_NEWUSER),
    ("kernel/ns_last_pid", libc::CLONE_NEWPID),
];

struct Plan {
    dir: PathBuf,
    flags: i32,
    hostname: Option<String>,
    sysctls: Vec<(String, String)>,
    uid_map: Vec<Vec<u32>>,
    gid_map: Vec<Vec<u32>>,
    userns: Option<String>,
    netns: Option<String>,
}

/// A child that is making namespaces.
pub struct Job {
    asker: Asker,
    plan: Plan,
    pid: Pid,
    channel: Watch,
    deadline: Key,
}

/// The path below /proc/sys of a sysctl, written with dots or with slashes (the first separator decides).
fn sysctl_path(name: &str, flags: i32) -> Outcome<String> {
    let slashes = name.find(['.', '/']).is_some_and(|place| name.as_bytes()[place] == b'/');
    let swap = |letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let path: String = if slashes { name.into() } else { name.chars().map(swap).collect() };
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(Failure::invalid(format!("bad sysctl name {name:?}")));
    }
    match SYSCTLS.iter().find(|(prefix, _)| path.starts_with(prefix)) {
        None => Err(Failure::invalid(format!("sysctl {name} is not separate per namespace"))),
        Some((_, kind)) if flags & kind == 0 => {
            let (kind, _) = TYPES.iter().find(|(_, flag)| flag == kind).unwrap_or(&TYPES[0]);
            Err(Failure::invalid(format!("sysctl {name} needs a new {kind} namespace")))
        }
        Some(_) => Ok(path),
    }
}

/// The types of the namespaces that are to be joined: they are bound like those that are made.
fn joined(netns: Option<&String>, userns: Option<&String>) -> i32 {
    netns.map_or(0, |_| libc::CLONE_NEWNET) | userns.map_or(0, |_| libc::CLONE_NEWUSER)
}

impl Plan {
    fn from_fields(fields: &mut Fields) -> Outcome<Plan> {
        let mut flags = 0;
        for word in fields.need::<Vec<String>>("types")? {
            match TYPES.iter().find(|(name, _)| *name == word) {
                Some((_, flag)) => flags |= flag,
                None => return Err(Failure::invalid(format!("unknown namespace type {word:?}"))),
            }
        }
        let netns: Option<String> = fields.take("netns")?;
        let inside = flags | joined(netns.as_ref(), None);
        let sysctls = fields.take::<Pairs>("sysctls")?.map(|pairs| pairs.0).unwrap_or_default();
        let sysctls = sysctls.into_iter().map(|(name, value)| Ok((sysctl_path(&name, inside)?, value)));
        let plan = Plan {
            dir: fields.need::<String>("dir")?.into(),
            flags,
            hostname: fields.take("hostname")?,
            sysctls: sysctls.collect::<Outcome<_>>()?,
            uid_map: fields.take("uid_map")?.unwrap_or_default(),
            gid_map: fields.take("gid_map")?.unwrap_or_default(),
            userns: fields.take("userns")?,
            netns,
        };
        end(fields)?;
        plan.check()?;
        Ok(plan)
    }

    fn check(&self) -> Outcome<()> {
        let user = self.flags & libc::CLONE_NEWUSER != 0;
        let refusal = if self.flags == 0 && self.netns.is_none() {
            "no namespace types"
        } else if !self.dir.is_absolute() {
            "field \"dir\" must be an absolute path"
        } else if self.hostname.is_some() && self.flags & libc::CLONE_NEWUTS == 0 {
            "a hostname needs a new uts namespace"
        } else if user == (self.uid_map.is_empty() || self.gid_map.is_empty()) {
            "uid_map and gid_map belong to a new user namespace, which needs both"
        } else if user && self.userns.is_some() {
            "userns joins a user namespace, types asks for a new one"
        } else if self.flags & libc::CLONE_NEWNET != 0 && self.netns.is_some() {
            "netns joins a network namespace, types asks for a new one"
        } else if self.uid_map.iter().chain(&self.gid_map).any(|line| line.len() != 3) {
            "a line of an id map is [inside, outside, count]"
        } else {
            return Ok(());
        };
        Err(Failure::invalid(refusal))
    }

    /// The child's part; an error says what was being done.
    fn make(&self, channel: &OwnedFd) -> Result<Pid, (String, io::Error)> {
        let step = |what: &str| {
            let what = what.to_string();
            move |error: io::Error| (what, error)
        };
        if let Some(path) = &self.netns {
            // First: in a user namespace of its own it has no right to join what belongs to another.
            let file = File::open(path).map_err(step(&format!("open {path}")))?;
            mount::setns(&file, libc::CLONE_NEWNET).map_err(step(&format!("join network namespace {path}")))?;
        }
        if let Some(path) = &self.userns {
            let file = File::open(path).map_err(step(&format!("open {path}")))?;
            mount::setns(&file, libc::CLONE_NEWUSER).map_err(step(&format!("join user namespace {path}")))?;
            process::become_root().map_err(step("become root of the user namespace"))?;
        } else if self.flags & libc::CLONE_NEWUSER != 0 {
            mount::unshare(libc::CLONE_NEWUSER).map_err(step("make a user namespace"))?;
            say(channel, "user").map_err(step("ask for id maps"))?;
            if hear(channel) != "go" {
                return Err(("set id maps".into(), io::Error::from_raw_os_error(libc::EPERM)));
            }
            process::become_root().map_err(step("become root of the user namespace"))?;
        }
        mount::unshare(self.flags & !libc::CLONE_NEWUSER).map_err(step("make namespaces"))?;
        if self.flags & libc::CLONE_NEWNET != 0 {
            net::loopback_up().map_err(step("bring lo up"))?;
        }
        if let Some(name) = &self.hostname {
            net::sethostname(name).map_err(step(&format!("set hostname {name}")))?;
        }
        for (path, value) in &self.sysctls {
            fs::write(format!("/proc/sys/{path}"), value).map_err(step(&format!("set sysctl {path} to {value:?}")))?;
        }
        if self.flags & libc::CLONE_NEWPID == 0 {
            return Ok(0);
        }
        process::fork_child(be_first).map_err(step("start the first process of the PID namespace"))
    }

    /// The keeper's part: files in `dir` to which the child's namespaces are bound.
    fn bind(&self, child: Pid, first: Pid) -> Outcome<()> {
        fs::create_dir_all(&self.dir)
            .map_err(|error| Failure::io(format!("cannot make {}", self.dir.display()), &error))?;
        let failed = |error| Failure::io(format!("cannot bind {}", self.dir.display()), &error);
        // A mount of its own, so that all of it is unmounted at once: each unmount waits for the kernel's RCU.
        mount::mount(&self.dir.to_string_lossy(), &self.dir, "", libc::MS_BIND, "").map_err(failed)?;
        let flags = self.flags | joined(self.netns.as_ref(), self.userns.as_ref());
        for (name, _) in TYPES.iter().filter(|(_, flag)| flags & flag != 0) {
            let target = self.dir.join(name);
            let pid = if *name == "pid" { first } else { child };
            let bound = File::create(&target)
                .and_then(|_| mount::mount(&format!("/proc/{pid}/ns/{name}"), &target, "", libc::MS_BIND, ""));
            bound.map_err(|error| Failure::io(format!("cannot bind {}", target.display()), &error))?;
        }
        if first > 0 {
            let file = self.dir.join(INIT_FILE);
            fs::write(&file, format!("{first} {}", start_time(first).unwrap_or_default()))
                .map_err(|error| Failure::io(format!("cannot write {}", file.display()), &error))?;
        }
        Ok(())
    }

    fn write_maps(&self, child: Pid) -> Outcome<()> {
        for (name, map) in [("uid_map", &self.uid_map), ("gid_map", &self.gid_map)] {
            let lines: String = map.iter().map(|line| format!("{} {} {}\n", line[0], line[1], line[2])).collect();
            let path = format!("/proc/{child}/{name}");
            let written = fs::OpenOptions::new().write(true).open(&path);
            // All lines in one write(2), as user_namespaces(7) asks.
            let written = written.and_then(|mut file| file.write_all(lines.as_bytes()));
            written.map_err(|error| Failure::io(format!("cannot set {name}"), &error))?;
        }
        Ok(())
    }
}

fn say(channel: &OwnedFd, text: &str) -> io::Result<()> {
    socket::send(channel, text.as_bytes(), &[])
}

/// The next message; empty when the other side has gone.
fn hear(channel: &OwnedFd) -> String {
    let mut text = [0; 16];
    let count = channel.try_clone().and_then(|fd| File::from(fd).read(&mut text)).unwrap_or(0);
    String::from_utf8_lossy(&text[..count]).into_owned()
}

/// The life of the forked child.
fn child_main(plan: &Plan, channel: &OwnedFd) -> i32 {
    process::set_name("drupe-ns");
    let answer = match plan.make(channel) {
        Ok(first) => format!("ok {first}"),
        Err((what, error)) => format!("error {} {what}", error.raw_os_error().unwrap_or(libc::EIO)),
    };
    if say(channel, &answer).is_ok() {
        hear(channel);
    }
    0
}

/// The life of the first process of a PID namespace: it reaps, and goes when it is killed.
fn be_first() -> i32 {
    process::set_name("drupe-init");
    process::close_from(3);
    process::rest_for_ever()
}

/// Field 22 of /proc/pid/stat: tells a process from a later one of the same number.
fn start_time(pid: Pid) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?.1.split_whitespace().nth(19).map(String::from)
}

/// Ends the first process of the PID namespace kept in `dir` (if there is one), and with it all the others.
pub fn end_first(dir: &Path) {
    let Ok(text) = fs::read_to_string(dir.join(INIT_FILE)) else { return };
    let Some((pid, started)) = text.split_once(' ') else { return };
    let Ok(pid) = pid.parse::<Pid>() else { return };
    let Ok(pidfd) = process::pidfd_open(pid) else { return };
    if start_time(pid).as_deref() == Some(started) {
        let _ = process::pidfd_send_signal(&pidfd, libc::SIGKILL);
    }
}

/// Unmounts and removes what `bind` made.
fn release_dir(dir: &Path) -> io::Result<()> {
    end_first(dir);
    unmount_all(dir)?;
    for (name, _) in TYPES {
        remove(fs::remove_file(dir.join(name)))?;
    }
    remove(fs::remove_file(dir.join(INIT_FILE)))?;
    remove(fs::remove_dir(dir))
}

fn remove(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

impl Keeper {
    pub fn namespaces(&mut self, asker: &Asker, fields: &mut Fields) -> Outcome<Reply> {
        let plan = Plan::from_fields(fields)?;
        if TYPES.iter().any(|(name, _)| plan.dir.join(name).exists()) {
            return Err(Failure::new("EEXIST", format!("{} holds namespaces already", plan.dir.display())));
        }
        let failed = |error: io::Error| Failure::io("cannot start a child for namespaces", &error);
        let (ours, theirs) = socket::pair().map_err(failed)?;
        let id = self.new_id();
        let mut channel = Watch::new(&self.epoll, ours, Source::Namespace, id);
        channel.set(Some(epoll::IN)).map_err(failed)?;
        let pid = process::fork_child(|| match process::keep_only(&theirs) {
            Ok(channel) => child_main(&plan, &channel),
            Err(_) => 1,
        });
        let pid = pid.map_err(failed)?;
        self.children.insert(pid, Child::Namespace(id));
        let deadline = self.timers.after(DEADLINE, Timer::NamespaceDeadline(id));
        self.jobs.insert(id, Job { asker: asker.clone(), plan, pid, channel, deadline });
        Ok(None)
    }

    pub fn job_ready(&mut self, id: u64) {
        let Some(job) = self.jobs.get(&id) else { return };
        let mut buffer = [0; 1024];
        let text = match socket::receive(&job.channel.file, &mut buffer) {
            Ok(received) => String::from_utf8_lossy(&buffer[..received.length]).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => String::new(),
        };
        let words: Vec<&str> = text.splitn(3, ' ').collect();
        let result = match words[..] {
            ["user"] => {
                let mapped = job.plan.write_maps(job.pid);
                match mapped.and_then(|()| self.go_on(id)) {
                    Ok(()) => return,
                    Err(failure) => Err(failure),
                }
            }
            ["ok", first] => {
                let first = first.parse().unwrap_or(0);
                let bound = job.plan.bind(job.pid, first);
                if bound.is_err() && first > 0 {
                    let _ = process::kill(first, libc::SIGKILL);
                }
                bound.map(|()| first)
            }
            ["error", number, what] => {
                let error = io::Error::from_raw_os_error(number.parse().unwrap_or(libc::EIO));
                Err(Failure::io(format!("cannot {what}"), &error))
            }
            _ => Err(Failure::new("ECHILD", "the child that makes namespaces died")),
        };
        self.finish_job(id, result);
    }

    fn go_on(&self, id: u64) -> Outcome<()> {
        let Some(job) = self.jobs.get(&id) else { return Ok(()) };
        socket::send(&job.channel.file, b"go", &[])
            .map_err(|error| Failure::io("the child that makes namespaces has gone", &error))
    }

    fn finish_job(&mut self, id: u64, result: Outcome<Pid>) {
        let Some(job) = self.jobs.remove(&id) else { return };
        self.timers.cancel(job.deadline);
        let answer = match result {
            Ok(first) => {
                self.mounted.push(job.plan.dir.clone());
                let value = if first > 0 { json!({"init_pid": first}) } else { json!({}) };
                Ok((value, Fds::default()))
            }
            Err(failure) => {
                if self.children.contains_key(&job.pid) {
                    let _ = process::kill(job.pid, libc::SIGKILL);
                }
                let _ = release_dir(&job.plan.dir);
                Err(failure)
            }
        };
        self.answer(&job.asker, answer);
        // Dropping the channel lets the child go.
    }

    pub fn job_ended(&mut self, id: u64) {
        self.finish_job(id, Err(Failure::new("ECHILD", "the child that makes namespaces died")));
    }

    pub fn job_late(&mut self, id: u64) {
        let text = format!("making namespaces took longer than {} s", DEADLINE.as_secs());
        self.finish_job(id, Err(Failure::new("ETIMEDOUT", text)));
    }

    pub fn release(&mut self, fields: &mut Fields) -> Outcome<Reply> {
        let dir: PathBuf = fields.need::<String>("dir")?.into();
        end(fields)?;
        if dir.is_dir() {
            release_dir(&dir).map_err(|error| Failure::io(format!("cannot release {}", dir.display()), &error))?;
        }
        self.mounted.retain(|target| *target != dir);
        reply(json!({}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_of_the_host_are_refused() {
        let net = libc::CLONE_NEWNET;
        assert_eq!(sysctl_path("net.ipv4.ip_forward", net).unwrap(), "net/ipv4/ip_forward");
        assert_eq!(sysctl_path("net/ipv4/conf/eth0.1/rp_filter", net).unwrap(), "net/ipv4/conf/eth0.1/rp_filter");
        assert_eq!(sysctl_path("net.ipv4.conf.eth0/1.rp_filter", net).unwrap(), "net/ipv4/conf/eth0.1/rp_filter");
        assert!(sysctl_path("kernel.panic", net).unwrap_err().message.contains("not separate"));
        assert!(sysctl_path("kernel.shmmax", net).unwrap_err().message.contains("ipc"));
        assert!(sysctl_path("net/../kernel/panic", net).is_err());
        assert!(sysctl_path("", net).is_err());
    }

    #[test]
    fn own_start_time() {
        let pid = std::process::id() as Pid;
        assert!(start_time(pid).unwrap().parse::<u64>().unwrap() > 0);
        assert_eq!(start_time(pid), start_time(pid));
    }
}
