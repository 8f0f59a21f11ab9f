//! Op `exec`: a further process in a container, started here without an OCI runtime.
//!
//! A forked child joins the container's namespaces and forks once more, for a PID namespace takes in new processes only. It
//! tells the new process's pid, waits until that has become the program, and exits as a runtime would: the rest is as with
//! `create`. The new process joins the cgroups by itself, and takes the steps of `crun exec` in the same order.

use crate::helper::{Environment, Program};
use crate::protocol::{Failure, Fds, Fields, Outcome, Reply};
use crate::server::{end, Asker, Keeper};
use crate::task::dev_null;
use drupe_sys::credentials::{self, Capabilities};
use drupe_sys::process::{self, Pid};
use drupe_sys::{fd, mount, socket, terminal};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;

const DEFAULT_TIMEOUT_MS: u64 = 30_000;
/// Twice what execve(2) takes, and six times that in JSON.
const LONGEST_PROCESS: u64 = 64 << 20;
const DEFAULT_PATH: &str = "/bin:/usr/bin";
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP;

/// What is to run, and as whom.
struct Plan {
    argv: Vec<String>,
    env: Vec<String>,
    cwd: String,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    capabilities: Capabilities,
    no_new_privileges: bool,
    limits: Vec<Vec<u64>>,
    oom_score_adj: Option<i64>,
    /// A BPF program; empty: none.
    filter: Vec<u8>,
    join: Vec<String>,
    /// Which namespaces to enter.
    namespaces: i32,
    /// Rows and columns of its terminal; (0, 0) leaves them open. None: no terminal.
    terminal: Option<(u16, u16)>,
    /// RLIMIT_NOFILE to start from: soft and hard.
    nofile: (u64, u64),
}

/// Done, or the words that say what was not.
type Step<T> = Result<T, String>;

fn failed(what: &str) -> impl FnOnce(io::Error) -> String + '_ {
    move |error| format!("cannot {what}: {}", reason(&error))
}

/// The kernel's word for an error, without Rust's addition.
fn reason(error: &io::Error) -> String {
    error.to_string().split(" (os error").next().unwrap_or_default().into()
}

impl Plan {
    fn from_fields(mut fields: Fields, nofile: (u64, u64)) -> Outcome<Plan> {
        let mut sets: Fields = fields.need("capabilities")?;
        let mut set = |name: &str| sets.take(name).map(Option::unwrap_or_default);
        let capabilities = Capabilities {
            bounding: set("bounding")?,
            effective: set("effective")?,
            permitted: set("permitted")?,
            inheritable: set("inheritable")?,
            ambient: set("ambient")?,
        };
        sets.finish()?;
        let plan = Plan {
            argv: fields.need("argv")?,
            env: fields.need::<Environment>("env")?.0,
            cwd: fields.need("cwd")?,
            uid: fields.need("uid")?,
            gid: fields.need("gid")?,
            groups: fields.need("groups")?,
            capabilities,
            no_new_privileges: fields.need("no_new_privileges")?,
            limits: fields.take("rlimits")?.unwrap_or_default(),
            oom_score_adj: fields.take("oom_score_adj")?,
            filter: Vec::new(),
            join: Vec::new(),
            namespaces: NAMESPACES,
            terminal: None,
            nofile,
        };
        fields.finish()?;
        Ok(plan)
    }

    /// What `create` has to know of it.
    fn program(&self, timeout_ms: u64) -> Outcome<Program> {
        if self.argv.first().is_none_or(String::is_empty) || self.limits.iter().any(|limit| limit.len() != 3) {
            return Err(Failure::invalid("field \"argv\" or \"rlimits\" is not what it should be"));
        }
        Ok(Program { argv: self.argv.clone(), env: Vec::new(), cwd: None, timeout_ms, ahead: false, join: Vec::new() })
    }

    /// Where the program may be, as execvp(3) looks for it.
    fn places(&self) -> Vec<String> {
        let name = &self.argv[0];
        if name.contains('/') {
            return vec![name.clone()];
        }
        let path = self.env.iter().find_map(|word| word.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
        path.split(':')
            .map(|place| if place.is_empty() { format!("./{name}") } else { format!("{place}/{name}") })
            .collect()
    }

    /// The first child: enters the container and has the process started in it. Its pid, and its terminal, go to `tell`.
    fn enter(&self, container: &OwnedFd, tell: &OwnedFd) -> Step<()> {
        process::set_nofile_limit(self.nofile.0, self.nofile.1).map_err(failed("set the limit of open files"))?;
        credentials::set_undumpable().map_err(failed("hide from the container"))?;
        if let Some(score) = self.oom_score_adj {
            fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(failed("set the OOM score"))?;
        }
        let open = |path: &String| OpenOptions::new().write(true).open(path).map_err(failed("open the cgroup"));
        let cgroups = self.join.iter().map(open).collect::<Step<Vec<File>>>()?;
        mount::setns(container, self.namespaces).map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => "the container is not running".into(),
            _ => failed("enter the container")(error),
        })?;
        let (master, slave) = self.open_terminal()?.unzip();
        let (hear, say) = fd::pipe().map_err(failed("make a pipe"))?;
        let pid = process::fork_child(move || {
            let words = self.become_program(cgroups, slave);
            let _ = File::from(say).write_all(words.as_bytes());
            127
        });
        let pid = pid.map_err(failed("fork"))?;
        let sent = socket::send(tell, pid.to_string().as_bytes(), &Vec::from_iter(master));
        sent.map_err(failed("tell the pid"))?;
        let mut words = String::new();
        match File::from(hear).read_to_string(&mut words) {
            Ok(0) => Ok(()), // closed by execve
            _ => Err(words),
        }
    }

    fn open_terminal(&self) -> Step<Option<(OwnedFd, OwnedFd)>> {
        let Some((rows, columns)) = self.terminal else { return Ok(None) };
        let pair = terminal::open_pair().map_err(failed("make a terminal"))?;
        if (rows, columns) != (0, 0) {
            fd::set_window_size(&pair.0, rows, columns).map_err(failed("set the size of the terminal"))?;
        }
        Ok(Some(pair))
    }

    /// The second child, which is in the container; returns only the words for why it could not.
    fn become_program(&self, cgroups: Vec<File>, terminal: Option<OwnedFd>) -> String {
        match self.prepare(cgroups, terminal).and_then(|()| self.give_up_privileges()) {
            Err(words) => words,
            Ok(()) => self.describe(&credentials::execute(&self.places(), &self.argv, &self.env)),
        }
    }

    fn prepare(&self, cgroups: Vec<File>, terminal: Option<OwnedFd>) -> Step<()> {
        for mut tasks in cgroups {
            tasks.write_all(b"0").map_err(failed("join the cgroup"))?;
        }
        process::reset_signals().map_err(failed("reset signals"))?;
        process::setsid().map_err(failed("begin a session"))?;
        if let Some(terminal) = terminal {
            terminal::control(&terminal, self.uid).map_err(failed("take the terminal"))?;
        }
        self.enter_directory()?;
        for limit in &self.limits {
            let set = credentials::set_limit(limit[0] as u32, limit[1], limit[2]);
            set.map_err(failed(&format!("set resource limit {}", limit[0])))?;
        }
        credentials::set_groups(&self.groups).map_err(failed("set groups"))?;
        for standard in 0..3 {
            let given = credentials::give_stream(standard, self.uid, self.gid);
            given.map_err(failed("give the streams to the user"))?;
        }
        Ok(())
    }

    /// A directory that is reached through something outside of the container's root has no name in it.
    fn enter_directory(&self) -> Step<()> {
        let words = |error: io::Error| format!("chdir to `{}`: {}", self.cwd, reason(&error));
        std::env::set_current_dir(&self.cwd).map_err(words)?;
        std::env::current_dir().map_err(words)?;
        Ok(())
    }

    /// Without no_new_privileges only a process with CAP_SYS_ADMIN may install a filter: then that comes first.
    fn give_up_privileges(&self) -> Step<()> {
        let filter = || match self.filter.is_empty() {
            true => Ok(()),
            false => credentials::install_filter(&self.filter).map_err(failed("install the seccomp filter")),
        };
        credentials::limit_bounding(self.capabilities.bounding).map_err(failed("limit capabilities"))?;
        if !self.no_new_privileges {
            filter()?;
        }
        credentials::set_ids(self.uid, self.gid).map_err(failed("become the user"))?;
        credentials::set_capabilities(&self.capabilities).map_err(failed("set capabilities"))?;
        if self.no_new_privileges {
            credentials::set_no_new_privileges().map_err(failed("give up new privileges"))?;
            filter()?;
        }
        Ok(())
    }

    /// A failed execve(2), in the words of crun, which the daemon understands.
    fn describe(&self, error: &io::Error) -> String {
        let name = &self.argv[0];
        match error.raw_os_error() {
            Some(libc::ENOENT) if !name.contains('/') => format!("executable file `{name}` not found in $PATH"),
            Some(libc::ENOENT) => format!("open `{name}`: {}", reason(error)),
            _ => format!("open executable `{name}`: {}", reason(error)),
        }
    }
}

/// What the process is to be: a JSON object in a file (of memory), for a packet may be too short for it.
fn read_process(fds: &mut Fds) -> Outcome<Fields> {
    let file = fds.take("process").ok_or_else(|| Failure::new("EBADF", "no descriptor \"process\" was sent"))?;
    let failed = |error: io::Error| Failure::io("cannot read the process", &error);
    let mut file = File::from(file);
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() || found.len() > LONGEST_PROCESS {
        return Err(Failure::invalid("descriptor \"process\" is no file, or too long"));
    }
    let mut text = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut text)).map_err(failed)?;
    Fields::parse(&text)
}

/// The program of a filter, as crun left it in its state. An empty one would be no filter at all.
fn read_filter(path: Option<String>) -> Outcome<Vec<u8>> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let program = fs::read(&path).map_err(|error| Failure::io(format!("cannot read filter {path}"), &error))?;
    match program.is_empty() {
        true => Err(Failure::invalid(format!("filter {path} is empty"))),
        false => Ok(program),
    }
}

/// What the first child does, with the descriptors of which it keeps its own.
fn child_main(plan: &Plan, stdio: &[OwnedFd; 3], kept: &[&OwnedFd; 3]) -> i32 {
    process::set_name("drupe-exec");
    let (Ok(()), Ok(kept)) = (process::lead_group(), process::keep_these(stdio, kept)) else { return 1 };
    let [container, tell, words] = &kept[..] else { return 1 };
    match plan.enter(container, tell) {
        Ok(()) => 0,
        Err(text) => {
            let told = words.try_clone().and_then(|fd| File::from(fd).write_all(text.as_bytes()));
            i32::from(told.is_ok()) // 1: failed, and said why
        }
    }
}

impl Keeper {
    pub fn exec(&mut self, asker: &Asker, fields: &mut Fields, fds: &mut Fds) -> Outcome<Reply> {
        let timeout_ms = fields.take("timeout_ms")?.unwrap_or(DEFAULT_TIMEOUT_MS);
        let mut plan = Plan::from_fields(read_process(fds)?, self.nofile)?;
        plan.filter = read_filter(fields.take("seccomp")?)?;
        plan.join = fields.take("join")?.unwrap_or_default();
        let program = plan.program(timeout_ms)?;
        let container: String = fields.need("container")?;
        let mut creation = self.creation(fields, fds)?;
        end(fields)?;
        plan.terminal = creation.terminal();
        let stdio = match plan.terminal {
            Some(_) => [dev_null(true)?, dev_null(false)?, dev_null(false)?],
            None => crate::create::take_stdio(fds)?,
        };
        fds.finish()?;

        let (init, pid) = self.living(&container)?;
        plan.namespaces |= user_namespace(pid)?;
        let broken = |error: io::Error| Failure::io("cannot make a pipe", &error);
        let (ours, theirs) = socket::pair().map_err(broken)?;
        let (words, say) = fd::pipe().map_err(broken)?;
        let started = process::fork_child(|| child_main(&plan, &stdio, &[&init, &theirs, &say]));
        let child = started.map_err(|error| Failure::io("cannot start a child for the exec", &error))?;
        creation.tells(ours, words);
        self.begin_creation(asker, child, program, creation);
        Ok(None)
    }

    /// The first process of a container that lives.
    fn living(&self, name: &str) -> Outcome<(OwnedFd, Pid)> {
        let task = self.names.get(name).and_then(|id| self.tasks.get(id));
        let task = task.filter(|task| task.exit.is_none());
        let gone = || Failure::new("EHELPER", "cannot exec").with_stderr("the container is not running".into());
        let task = task.ok_or_else(gone)?;
        let pidfd = task.pidfd.as_ref().ok_or_else(gone)?;
        let copy = pidfd.file.try_clone().map_err(|error| Failure::io("cannot duplicate a pidfd", &error))?;
        Ok((copy.into(), task.pid))
    }
}

/// CLONE_NEWUSER when a process has a user namespace that is not ours: ours cannot be entered again.
fn user_namespace(pid: Pid) -> Outcome<i32> {
    let look = |who: &str| fs::read_link(format!("/proc/{who}/ns/user"));
    match (look(&pid.to_string()), look("self")) {
        (Ok(theirs), Ok(ours)) if theirs == ours => Ok(0),
        (Ok(_), Ok(_)) => Ok(libc::CLONE_NEWUSER),
        (Err(error), _) | (_, Err(error)) => Err(Failure::io("cannot look at the container's user namespace", &error)),
    }
}
