//! Helper programs: op `run`, and the running of those that op `create` starts.

use crate::create::Creation;
use crate::foreign::{Kind, Pending};
use crate::protocol::{Failure, Fds, Field, Fields, Outcome, Pairs, Reply};
use crate::server::{end, Asker, Child, Keeper, TURN};
use crate::task::dev_null;
use crate::timers::{Key, Timer};
use crate::watch::{Source, Watch};
use drupe_sys::process::{self, Ended, Pid, Spawn};
use drupe_sys::{epoll, fd, net};
use serde_json::{json, Value};
use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// What is kept of each output of a helper: half of it from the head, half from the tail.
const KEPT: usize = 64 * 1024;
const DEFAULT_TIMEOUT_MS: u64 = 30_000;
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub struct Helper {
    pub asker: Asker,
    pub pid: Pid,
    pub program: String,
    pub timed_out: bool,
    pub timeout_ms: u64,
    pub deadline: Key,
    pub work: Work,
}

pub enum Work {
    Run(Box<Run>),
    Create(Box<Creation>),
}

pub struct Run {
    stdin: Option<(Watch, Pending)>,
    outputs: [Capture; 2],
}

/// Environment as an object, or as a list of `NAME=value`.
pub struct Environment(pub Vec<String>);

impl Field for Environment {
    const EXPECTS: &'static str = "an object of strings or a list of NAME=value";
    fn from_json(value: Value) -> Option<Self> {
        if value.is_array() {
            return Vec::<String>::from_json(value).map(Environment);
        }
        let pairs = Pairs::from_json(value)?.0.into_iter();
        Some(Environment(pairs.map(|(name, value)| format!("{name}={value}")).collect()))
    }
}

/// The fields that `run` and `create` share.
pub struct Program {
    pub argv: Vec<String>,
    pub env: Vec<String>,
    pub cwd: Option<String>,
    pub timeout_ms: u64,
    /// See `Spawn`.
    pub ahead: bool,
    pub join: Vec<String>,
}

impl Program {
    pub fn from_fields(fields: &mut Fields) -> Outcome<Program> {
        let program = Program {
            argv: fields.need("argv")?,
            env: fields.take::<Environment>("env")?.map_or_else(|| vec![DEFAULT_PATH.into()], |env| env.0),
            cwd: fields.take("cwd")?,
            timeout_ms: fields.take("timeout_ms")?.unwrap_or(DEFAULT_TIMEOUT_MS),
            ahead: false,
            join: Vec::new(),
        };
        match program.argv.first() {
            Some(name) if !name.is_empty() => Ok(program),
            _ => Err(Failure::invalid("field \"argv\" is empty")),
        }
    }

    /// Starts it. The limit of open files is for that moment what the keeper itself was started with.
    pub fn spawn(
        &self,
        netns: Option<&str>,
        stdio: &[OwnedFd; 3],
        pass: &[OwnedFd],
        nofile: (u64, u64),
    ) -> Outcome<Pid> {
        let spawn = Spawn {
            argv: &self.argv,
            env: &self.env,
            cwd: self.cwd.as_deref().map(Path::new),
            stdio: [stdio[0].as_fd(), stdio[1].as_fd(), stdio[2].as_fd()],
            pass,
            ahead: self.ahead,
            join: &self.join,
        };
        let (soft, hard) = nofile;
        let start = || {
            process::set_nofile_limit(soft, hard)?;
            let result = process::spawn(&spawn);
            process::set_nofile_limit(hard, hard)?;
            result
        };
        let pid = match netns {
            Some(path) => net::in_netns(Path::new(path), start),
            None => start(),
        };
        pid.map_err(|error| Failure::io(format!("cannot start {}", self.argv[0]), &error))
    }
}

/// The bounded memory of what a helper wrote.
pub struct Capture {
    watch: Option<Watch>,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    left_out: u64,
}

impl Capture {
    fn new(watch: Watch) -> Capture {
        Capture { watch: Some(watch), head: Vec::new(), tail: VecDeque::new(), left_out: 0 }
    }

    fn add(&mut self, data: &[u8]) {
        let (head, rest) = data.split_at(data.len().min(KEPT / 2 - self.head.len()));
        self.head.extend_from_slice(head);
        self.tail.extend(rest);
        let surplus = self.tail.len().saturating_sub(KEPT / 2);
        self.tail.drain(..surplus);
        self.left_out += surplus as u64;
    }

    /// Reads once; false: nothing there now, or nothing ever again.
    fn read(&mut self, buffer: &mut [u8]) -> bool {
        let Some(watch) = &mut self.watch else { return false };
        match (&watch.file).read(buffer) {
            Ok(count) if count > 0 => {
                self.add(&buffer[..count]);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            _ => {
                self.watch = None;
                false
            }
        }
    }

    /// All that was kept; what was left out is named in its place.
    fn text(&self, limit: usize) -> String {
        let mut bytes = self.head.clone();
        if self.left_out > 0 {
            bytes.extend_from_slice(format!("\n[{} bytes left out]\n", self.left_out).as_bytes());
        }
        bytes.extend(&self.tail);
        let mut text = String::from_utf8_lossy(&bytes).into_owned();
        if text.len() > limit {
            let start = (text.len() - limit..text.len()).find(|place| text.is_char_boundary(*place));
            text.drain(..start.unwrap_or(0));
        }
        text
    }
}

impl Run {
    /// The answer, shortened when escaping made it longer than a packet.
    fn answer(&self, ended: Ended, timed_out: bool) -> Value {
        let mut limit = KEPT + 64;
        loop {
            let answer = json!({
                "exit": ended.code, "signal": ended.signal, "timed_out": timed_out,
                "stdout": self.outputs[0].text(limit), "stderr": self.outputs[1].text(limit),
            });
            if answer.to_string().len() < crate::protocol::MAX_PACKET - 1024 {
                return answer;
            }
            limit /= 2;
        }
    }
}

impl Keeper {
    pub fn run_helper(&mut self, asker: &Asker, fields: &mut Fields, fds: &mut Fds) -> Outcome<Reply> {
        let program = Program::from_fields(fields)?;
        let netns: Option<String> = fields.take("netns")?;
        let input: Option<String> = fields.take("stdin")?;
        let pass = fds.take_all(&fields.take::<Vec<String>>("pass")?.unwrap_or_default())?;
        end(fields)?;
        fds.finish()?;

        let failed = |error: io::Error| Failure::io("cannot make a pipe", &error);
        let id = self.new_id();
        let (stdin, our_stdin) = match &input {
            Some(_) => fd::pipe().map(|(read, write)| (read, Some(write))).map_err(failed)?,
            None => (dev_null(true)?, None),
        };
        let (our_stdout, stdout) = fd::pipe().map_err(failed)?;
        let (our_stderr, stderr) = fd::pipe().map_err(failed)?;
        let watched = |fd: OwnedFd, source, events| -> io::Result<Watch> {
            fd::set_nonblocking(&fd)?;
            let mut watch = Watch::new(&self.epoll, fd, source, id);
            watch.set(events)?;
            Ok(watch)
        };
        let stdout_watch = watched(our_stdout, Source::HelperStdout, Some(epoll::IN)).map_err(failed)?;
        let stderr_watch = watched(our_stderr, Source::HelperStderr, Some(epoll::IN)).map_err(failed)?;
        let stdin_watch = our_stdin.map(|fd| watched(fd, Source::HelperStdin, None)).transpose().map_err(failed)?;

        let pid = program.spawn(netns.as_deref(), &[stdin, stdout, stderr], &pass, self.nofile)?;
        let run = Run {
            stdin: stdin_watch.map(|watch| (watch, Pending::default())),
            outputs: [Capture::new(stdout_watch), Capture::new(stderr_watch)],
        };
        self.started(id, asker, pid, program, Work::Run(Box::new(run)));
        self.write_helper_stdin(id, input.unwrap_or_default().as_bytes());
        Ok(None)
    }

    pub fn started(&mut self, id: u64, asker: &Asker, pid: Pid, program: Program, work: Work) {
        let timeout_ms = program.timeout_ms;
        let deadline = self.timers.after(Duration::from_millis(timeout_ms), Timer::HelperDeadline(id));
        let name = program.argv.into_iter().next().unwrap_or_default();
        let helper = Helper { asker: asker.clone(), pid, program: name, timed_out: false, timeout_ms, deadline, work };
        self.children.insert(pid, Child::Helper(id));
        self.helpers.insert(id, helper);
    }

    fn write_helper_stdin(&mut self, id: u64, data: &[u8]) {
        let Some(Helper { work: Work::Run(run), .. }) = self.helpers.get_mut(&id) else { return };
        let Some((watch, pending)) = &mut run.stdin else { return };
        let result = match data {
            [] => pending.flush(&watch.file, Kind::File),
            data => pending.push(&watch.file, Kind::File, data),
        };
        if result.is_err() || pending.is_empty() || watch.set(Some(epoll::OUT)).is_err() {
            run.stdin = None;
        }
    }

    pub fn helper_input(&mut self, id: u64) {
        self.write_helper_stdin(id, &[]);
    }

    pub fn helper_output(&mut self, id: u64, which: usize) {
        if let Some(Helper { work: Work::Run(run), .. }) = self.helpers.get_mut(&id) {
            run.outputs[which].read(&mut self.buffer[..TURN]);
        }
    }

    pub fn helper_late(&mut self, id: u64) {
        if let Some(helper) = self.helpers.get_mut(&id) {
            helper.timed_out = true;
            process::kill_group(helper.pid);
        }
    }

    pub fn helper_ended(&mut self, id: u64, ended: Ended) {
        let Some(helper) = self.helpers.remove(&id) else { return };
        self.timers.cancel(helper.deadline);
        if helper.timed_out {
            // What it started in its group goes with it.
            process::kill_group(helper.pid);
        }
        match helper.work {
            Work::Run(mut run) => {
                for output in &mut run.outputs {
                    // It wrote all that it will ever write; descendants that hold the pipe are not waited for.
                    for _ in 0..32 {
                        if !output.read(&mut self.buffer[..TURN]) {
                            break;
                        }
                    }
                }
                let answer = run.answer(ended, helper.timed_out);
                self.answer(&helper.asker, Ok((answer, Fds::default())));
            }
            Work::Create(creation) => {
                let timeout_ms = helper.timed_out.then_some(helper.timeout_ms);
                self.created(&helper.asker, &helper.program, *creation, ended, timeout_ms);
                if !self.creating() {
                    self.unclaimed.clear();
                }
            }
        }
    }

    /// Whether a helper may be about to name one of our children in its pidfile.
    pub fn creating(&self) -> bool {
        self.helpers.values().any(|helper| matches!(helper.work, Work::Create(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_head_and_tail() {
        let mut capture = Capture { watch: None, head: Vec::new(), tail: VecDeque::new(), left_out: 0 };
        capture.add(b"first");
        for _ in 0..10 {
            capture.add(&[b'x'; 50_000]);
        }
        capture.add(b"last");
        let text = capture.text(KEPT + 64);
        assert!(text.starts_with("firstxxx") && text.ends_with("xxxlast"));
        let named: u64 = text.split('[').nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert_eq!(named as usize + KEPT, 500_000 + 9);
    }

    #[test]
    fn an_answer_fits_into_a_packet() {
        let noise = || {
            let mut capture = Capture { watch: None, head: Vec::new(), tail: VecDeque::new(), left_out: 0 };
            capture.add(&[0; 200_000]);
            capture
        };
        let run = Run { stdin: None, outputs: [noise(), noise()] };
        let ended = Ended { code: 0, signal: 0, core: false };
        assert!(run.answer(ended, false).to_string().len() < crate::protocol::MAX_PACKET);
    }
}
