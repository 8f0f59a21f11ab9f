//! Ops `create` and `adopt`: how a process becomes a task.

use crate::attach::Attached;
use crate::helper::{Program, Work};
use crate::log::Log;
use crate::protocol::{Failure, Fds, Fields, Outcome, Reply};
use crate::server::{end, Asker, Child, Keeper};
use crate::streams::THEIRS;
use crate::task::{dev_null, make_pipes, Ends, Task};
use crate::watch::{Source, Watch};
use drupe_sys::process::{self, Ended, Pid};
use drupe_sys::{fd, socket};
use serde_json::{json, Value};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// How much of a failed helper's words an error carries.
const STDERR_KEPT: u64 = 8 * 1024;
const CONSOLE: &str = "{console}";
/// The pid of a task that is no process here.
pub const NO_PROCESS: Pid = 0;

/// The socket on which an OCI runtime sends the master of a pty (runc's --console-socket).
struct Console {
    path: PathBuf,
    /// The same through a descriptor of the keeper, because a socket's path is short (unix(7)).
    short: String,
    listener: UnixListener,
}

impl Console {
    fn new(directory: &Path, handle: &File, id: u64) -> io::Result<Console> {
        let name = format!("console-{id}");
        let short = format!("/proc/{}/fd/{}/{name}", std::process::id(), handle.as_raw_fd());
        let listener = UnixListener::bind(&short)?;
        listener.set_nonblocking(true)?;
        Ok(Console { path: directory.join(name), short, listener })
    }

    /// The master that was sent. The runtime has ended: it waits in the socket or never came.
    fn receive(&self) -> io::Result<OwnedFd> {
        let (connection, _) = self.listener.accept()?;
        let received = socket::receive(&connection, &mut [0; 4096])?;
        received.fds.into_iter().next().ok_or_else(|| io::Error::from_raw_os_error(libc::EPROTO))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// How a helper tells of the process that it made.
enum Teller {
    /// An OCI runtime: by a file, and by a socket for the terminal.
    Runtime { pidfile: String, console: Option<Console> },
    /// A child of our own, in one packet: the pid, and the master of the terminal. None: not there yet.
    Child(Option<OwnedFd>),
}

/// A task in the making.
pub struct Creation {
    task_id: u64,
    name: String,
    mode: Mode,
    teller: Teller,
    exit_file: Option<String>,
    log: Option<Log>,
    log_file: Option<String>,
    ends: Ends,
    /// What the helper itself writes where the task's stdio is a pty.
    words: Option<OwnedFd>,
    size: Option<(u16, u16)>,
    attached: Option<Attached>,
    /// Its output rests until the op `flow`.
    hold: bool,
}

#[derive(Clone, Copy)]
enum Mode {
    Pipes { stdin: bool },
    Tty { size: Option<(u16, u16)> },
    Fds,
    Null,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Pipes { .. } => "pipes",
            Mode::Tty { .. } => "tty",
            Mode::Fds => "fds",
            Mode::Null => "null",
        }
    }

    fn from_fields(mut fields: Fields) -> Outcome<Mode> {
        let mode = fields.take::<String>("mode")?.unwrap_or_else(|| "pipes".into());
        // A terminal always takes input, and other modes have none of the keeper's.
        let stdin = fields.take("stdin")?.unwrap_or(false);
        let parsed = match mode.as_str() {
            "pipes" => Mode::Pipes { stdin },
            "tty" => {
                let (rows, columns) = (fields.take("rows")?, fields.take("cols")?);
                Mode::Tty { size: rows.zip(columns) }
            }
            "fds" => Mode::Fds,
            "null" => Mode::Null,
            _ => return Err(Failure::invalid(format!("unknown io mode {mode:?}"))),
        };
        fields.finish()?;
        Ok(parsed)
    }
}

fn take_log(fields: &mut Fields) -> Outcome<Option<Log>> {
    fields.take::<Fields>("log")?.map(Log::from_fields).transpose()
}

/// The last 8 KiB of a file, or nothing.
fn tail(path: &str) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(STDERR_KEPT);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(STDERR_KEPT).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// What waits in a pipe now, 8 KiB at most.
fn waiting(pipe: &OwnedFd) -> String {
    let mut bytes = vec![0; STDERR_KEPT as usize];
    let count = fd::set_nonblocking(pipe).and_then(|()| File::from(pipe.try_clone()?).read(&mut bytes));
    String::from_utf8_lossy(&bytes[..count.unwrap_or(0)]).into_owned()
}

/// Field 4 of /proc/pid/stat.
fn parent_of(pid: Pid) -> Option<Pid> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn is_our_child(pid: Pid) -> bool {
    parent_of(pid) == Some(std::process::id() as Pid)
}

impl Creation {
    /// What the failed helper said: its log, then what it wrote to the stdio it was given.
    fn helper_words(&self) -> String {
        let mut text = self.log_file.as_deref().map(tail).unwrap_or_default();
        for pipe in [&self.words, &self.ends.stderr, &self.ends.stdout].into_iter().flatten() {
            let more = waiting(pipe);
            if text.contains(more.trim()) {
                continue;
            }
            if !more.is_empty() && !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(&more);
        }
        text
    }

    /// The pid of the process that was made, and its terminal if it has one.
    fn told(&self) -> Outcome<(Pid, Option<OwnedFd>)> {
        let (text, tty) = match &self.teller {
            Teller::Runtime { pidfile, console } => {
                let text = fs::read_to_string(pidfile);
                let text = text.map_err(|error| Failure::io(format!("cannot read pidfile {pidfile}"), &error))?;
                let tty = console.as_ref().map(Console::receive).transpose();
                (text, tty.map_err(|error| Failure::io("the helper sent no pty to the console socket", &error))?)
            }
            Teller::Child(channel) => {
                let mut buffer = [0; 32];
                let channel = channel.as_ref().ok_or_else(|| Failure::new("EPROTO", "nobody tells the pid"))?;
                let packet = socket::receive(channel, &mut buffer);
                let packet = packet.map_err(|error| Failure::io("the child told no pid", &error))?;
                (String::from_utf8_lossy(&buffer[..packet.length]).into_owned(), packet.fds.into_iter().next())
            }
        };
        let pid = text.trim().parse().ok().filter(|pid| *pid > 1);
        Ok((pid.ok_or_else(|| Failure::new("EPROTO", format!("{text:?} is no pid")))?, tty))
    }

    /// Rows and columns that a terminal is to have, 0 where that is open; None: no terminal.
    pub fn terminal(&self) -> Option<(u16, u16)> {
        match self.mode {
            Mode::Tty { size } => Some(size.unwrap_or_default()),
            _ => None,
        }
    }

    /// The task, without a process, if its streams are pipes.
    pub fn without_process(self) -> Outcome<WithoutProcess> {
        let Mode::Pipes { stdin } = self.mode else {
            return Err(Failure::invalid("a task without a process has pipes"));
        };
        let (ends, theirs) = make_pipes(stdin)?;
        let started_at = crate::clock::unix_seconds();
        let mut task = Task::new(self.name, NO_PROCESS, self.log, self.exit_file, started_at);
        task.mode = self.mode.name();
        Ok(WithoutProcess { id: self.task_id, task, ends, theirs, attached: self.attached })
    }

    /// A child of our own makes the process: where it tells the pid, and where it says what went wrong.
    pub fn tells(&mut self, channel: OwnedFd, words: OwnedFd) {
        self.teller = Teller::Child(Some(channel));
        self.words = Some(words);
    }
}

/// A task that is no process of this kernel: our ends of its pipes and the others, and what is to be attached.
pub struct WithoutProcess {
    pub id: u64,
    pub task: Task,
    pub ends: Ends,
    pub theirs: [OwnedFd; 3],
    pub attached: Option<Attached>,
}

/// The streams that a client sent; what is missing is /dev/null.
pub fn take_stdio(fds: &mut Fds) -> Outcome<[OwnedFd; 3]> {
    Ok([
        fds.take("stdin").map_or_else(|| dev_null(true), Ok)?,
        fds.take("stdout").map_or_else(|| dev_null(false), Ok)?,
        fds.take("stderr").map_or_else(|| dev_null(false), Ok)?,
    ])
}

impl Keeper {
    pub fn create(&mut self, asker: &Asker, fields: &mut Fields, fds: &mut Fds) -> Outcome<Reply> {
        let mut program = Program::from_fields(fields)?;
        program.join = fields.take("join")?.unwrap_or_default();
        let pidfile: String = fields.need("pidfile")?;
        let extra = fds.take_all(&fields.take::<Vec<String>>("extra_fds")?.unwrap_or_default())?;
        let hold = fields.take("hold")?.unwrap_or(false);
        let mut creation = self.creation(fields, fds)?;
        creation.hold = hold;
        end(fields)?;
        let (stdio, console) = self.prepare_stdio(&mut creation, &mut program, fds)?;
        fds.finish()?;
        match fs::remove_file(&pidfile) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Failure::io(format!("cannot remove old pidfile {pidfile}"), &error));
            }
            _ => {}
        }
        creation.teller = Teller::Runtime { pidfile, console };
        let pid = program.spawn(None, &stdio, &extra, self.nofile)?;
        self.begin_creation(asker, pid, program, creation);
        Ok(None)
    }

    /// The fields that every way to make a task has.
    pub fn creation(&mut self, fields: &mut Fields, fds: &mut Fds) -> Outcome<Creation> {
        let name: String = fields.need("task")?;
        let mode = Mode::from_fields(fields.need("io")?)?;
        let attached = fields.take::<Fields>("attach")?;
        let attached = attached.map(|options| Attached::from_request(options, fds, "attach_")).transpose()?;
        self.check_free(&name)?;
        Ok(Creation {
            task_id: self.new_id(),
            name,
            mode,
            teller: Teller::Child(None),
            exit_file: fields.take("exit_file")?,
            log: take_log(fields)?,
            log_file: fields.take("log_file")?,
            ends: Ends::default(),
            words: None,
            size: None,
            attached,
            hold: false,
        })
    }

    /// A helper runs that makes the task.
    pub fn begin_creation(&mut self, asker: &Asker, pid: Pid, program: Program, creation: Creation) {
        let id = self.new_id();
        self.names.insert(creation.name.clone(), creation.task_id);
        self.started(id, asker, pid, program, Work::Create(Box::new(creation)));
    }

    fn check_free(&self, name: &str) -> Outcome<()> {
        if name.is_empty() {
            return Err(Failure::invalid("field \"task\" is empty"));
        }
        match self.names.contains_key(name) {
            true => Err(Failure::new("EEXIST", format!("task {name:?} exists"))),
            false => Ok(()),
        }
    }

    /// The helper's stdin, stdout and stderr, which the task inherits; and the socket for a terminal.
    fn prepare_stdio(
        &mut self,
        creation: &mut Creation,
        program: &mut Program,
        fds: &mut Fds,
    ) -> Outcome<([OwnedFd; 3], Option<Console>)> {
        match creation.mode {
            Mode::Null => Ok(([dev_null(true)?, dev_null(false)?, dev_null(false)?], None)),
            Mode::Pipes { stdin } => {
                let (ends, stdio) = make_pipes(stdin)?;
                creation.ends = ends;
                Ok((stdio, None))
            }
            Mode::Fds => Ok((take_stdio(fds)?, None)),
            Mode::Tty { size } => {
                if !program.argv.iter().any(|word| word.contains(CONSOLE)) {
                    return Err(Failure::invalid(format!("io mode tty needs {CONSOLE} in argv")));
                }
                let id = self.new_id();
                let console = Console::new(&self.run_dir, &self.run_dir_handle, id);
                let console = console.map_err(|error| Failure::io("cannot make a console socket", &error))?;
                for word in &mut program.argv {
                    *word = word.replace(CONSOLE, &console.short);
                }
                creation.size = size;
                // crun sets the size of an exec's terminal while the workload is already on its way: it must be first.
                program.ahead = size.is_some();
                let failed = |error: io::Error| Failure::io("cannot make a pipe", &error);
                let (ours, theirs) = fd::pipe().map_err(failed)?;
                creation.words = Some(ours);
                let stdout = theirs.try_clone().map_err(failed)?;
                Ok(([dev_null(true)?, stdout, theirs], Some(console)))
            }
        }
    }

    /// The helper has ended: its child becomes a task, or the request has failed.
    pub fn created(&mut self, asker: &Asker, program: &str, creation: Creation, ended: Ended, timeout_ms: Option<u64>) {
        let (name, id) = (creation.name.clone(), creation.task_id);
        let result = match (timeout_ms, ended.code) {
            (Some(timeout_ms), _) => {
                let failure = Failure::new("ETIMEDOUT", format!("{program} took longer than {timeout_ms} ms"));
                Err((failure.with_stderr(creation.helper_words()), Some(creation)))
            }
            (None, 0) => self.become_task(asker, creation).map_err(|failure| (failure, None)),
            (None, code) => {
                let how = match ended.signal {
                    0 => format!("exited with {code}"),
                    signal => format!("was killed by signal {signal}"),
                };
                let failure = Failure::new("EHELPER", format!("{program} {how}"));
                Err((failure.with_stderr(creation.helper_words()), Some(creation)))
            }
        };
        match result {
            Ok((answer, fds, ended)) => {
                // The answer comes before any event about the task.
                self.answer(asker, Ok((answer, fds)));
                self.listen_to(id);
                if let Some(ended) = ended {
                    self.task_ended(id, ended, false);
                }
            }
            Err((failure, creation)) => {
                self.names.remove(&name);
                // A half-made child must not live on unseen.
                let pid = creation
                    .and_then(|creation| creation.told().ok())
                    .map(|told| told.0)
                    .filter(|pid| is_our_child(*pid));
                if let Some(pid) = pid {
                    let _ = process::kill(pid, libc::SIGKILL);
                }
                self.answer(asker, Err(failure));
            }
        }
    }

    /// The answer, and how the task ended if it has done so already.
    fn become_task(&mut self, asker: &Asker, mut creation: Creation) -> Outcome<(Value, Fds, Option<Ended>)> {
        let (pid, tty) = creation.told()?;
        if let (Some(tty), Some((rows, columns))) = (&tty, creation.size) {
            let _ = fd::set_window_size(tty, rows, columns);
        }
        creation.ends.tty = tty;
        let started_at = crate::clock::unix_seconds();
        let mut task = Task::new(creation.name, pid, creation.log, creation.exit_file, started_at);
        task.mode = creation.mode.name();
        task.hold = creation.hold;
        let id = creation.task_id;
        let ended = self.unclaimed.remove(&pid);
        if ended.is_none() {
            let pidfd = process::pidfd_open(pid)
                .map_err(|error| Failure::io(format!("no process with the pid {pid} of the pidfile"), &error))?;
            self.claim(&mut task, id, pidfd)?;
        }
        let failed = |error: io::Error| Failure::io("cannot take over the stdio of the task", &error);
        task.connect(&self.epoll, id, creation.ends).map_err(failed)?;
        let fds = task.escrow().map_err(failed)?;
        self.tasks.insert(id, task);
        let mut answer = json!({"pid": pid, "started_at": started_at});
        if let Some(attached) = creation.attached {
            answer["attachment"] = json!(self.attach_to(id, asker, attached)?);
        }
        Ok((answer, fds, ended))
    }

    /// Sees to it that the end of the process is noticed: as its parent, or by its pidfd.
    fn claim(&mut self, task: &mut Task, id: u64, pidfd: OwnedFd) -> Outcome<()> {
        let mut watch = Watch::new(&self.epoll, pidfd, Source::TaskPidfd, id);
        if is_our_child(task.pid) {
            self.children.insert(task.pid, Child::Task(id));
        } else {
            let watched = watch.set(Some(drupe_sys::epoll::IN));
            watched.map_err(|error| Failure::io("cannot watch the process", &error))?;
        }
        task.pidfd = Some(watch);
        Ok(())
    }

    /// A task of an earlier keeper, with the descriptors that the daemon kept.
    pub fn adopt(&mut self, asker: &Asker, fields: &mut Fields, fds: &mut Fds) -> Outcome<Reply> {
        let name: String = fields.need("task")?;
        let pid: Pid = fields.need("pid")?;
        let started_at = fields.take("started_at")?.unwrap_or_else(crate::clock::unix_seconds);
        let exit_file = fields.take("exit_file")?;
        let mode = Mode::from_fields(fields.need("io")?)?;
        let pidfd = fds.take("pidfd");
        if pid != NO_PROCESS && pidfd.is_none() {
            return Err(Failure::new("EBADF", "no descriptor \"pidfd\" was sent"));
        }
        let ends = Ends::take_from(fds);
        let theirs = THEIRS.into_iter().filter_map(|name| Some((name.to_string(), fds.take(name)?)));
        let theirs = Fds(theirs.collect());
        let attached = fields.take::<Fields>("attach")?;
        let attached = attached.map(|options| Attached::from_request(options, fds, "attach_")).transpose()?;
        self.check_free(&name)?;
        let log = take_log(fields)?;
        end(fields)?;
        fds.finish()?;
        let fits = match mode {
            Mode::Tty { .. } => ends.tty.is_some(),
            Mode::Pipes { .. } => ends.stdout.is_some() && ends.stderr.is_some(),
            Mode::Fds | Mode::Null => ends.stdout.is_none() && ends.stderr.is_none() && ends.tty.is_none(),
        };
        if !fits {
            return Err(Failure::new("EBADF", "the descriptors sent do not fit the io mode"));
        }
        let id = self.new_id();
        let mut task = Task::new(name.clone(), pid, log, exit_file, started_at);
        (task.mode, task.theirs) = (mode.name(), theirs);
        if let Some(pidfd) = pidfd {
            self.claim(&mut task, id, pidfd)?;
        }
        let connected = task.connect(&self.epoll, id, ends);
        connected.map_err(|error| Failure::io("cannot take over the stdio of the task", &error))?;
        self.names.insert(name, id);
        self.tasks.insert(id, task);
        self.listen_to(id);
        let mut answer = json!({});
        if let Some(attached) = attached {
            answer["attachment"] = json!(self.attach_to(id, asker, attached)?);
        }
        crate::protocol::reply(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_parents() {
        let me = std::process::id() as Pid;
        assert_eq!(parent_of(me), Some(std::os::unix::process::parent_id() as Pid));
        assert!(!is_our_child(me));
        assert_eq!(parent_of(Pid::MAX), None);
    }

    #[test]
    fn modes() {
        let mode = |text: &str| Mode::from_fields(Fields::parse(text.as_bytes()).unwrap());
        assert!(matches!(mode(r#"{"mode": "pipes", "stdin": true}"#), Ok(Mode::Pipes { stdin: true })));
        assert!(matches!(mode(r#"{"mode": "tty", "rows": 2, "cols": 3}"#), Ok(Mode::Tty { size: Some((2, 3)) })));
        assert!(mode(r#"{"mode": "pipe"}"#).is_err());
        assert!(matches!(mode("{}"), Ok(Mode::Pipes { stdin: false })));
        assert!(mode(r#"{"mode": "null", "rows": 1}"#).is_err());
    }
}
