//! The life of tasks: their output, their end, and the ops on them.

use crate::protocol::{reply, Failure, Fds, Fields, Outcome, Reply};
use crate::server::{end, Keeper, TURN};
use crate::task::{Exit, Task};
use crate::timers::Timer;
use drupe_sys::process::{self, Ended};
use drupe_sys::{epoll, fd};
use serde_json::{json, Value};
use std::io::{self, Read};
use std::time::{Duration, Instant};

/// After the end of a task, its output counts as drained when no byte came for so long.
const QUIET: Duration = Duration::from_millis(500);
/// … and at the latest after this time, though a descendant writes on.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How often a pty without open terminals is looked at again.
const REVIVE: Duration = Duration::from_millis(200);
/// How long an adopted process may stay unreaped by its new parent until its exit counts as unknown.
const REAPED_WITHIN: Duration = Duration::from_secs(10);
const LIST_BYTES: usize = 128 * 1024;
/// What a terminal takes as the end of input (termios(3) VEOF).
const END_OF_TRANSMISSION: &[u8] = &[4];

impl Keeper {
    /// The id of the task that the request names.
    pub fn task_id(&mut self, fields: &mut Fields) -> Outcome<u64> {
        let name: String = fields.need("task")?;
        let id = self.names.get(&name).copied().filter(|id| self.tasks.contains_key(id));
        id.ok_or_else(|| Failure::new("ENOENT", format!("no task {name:?}")))
    }

    /// The task that a request names; the request has no other fields left.
    fn task(&mut self, fields: &mut Fields) -> Outcome<&mut Task> {
        let id = self.task_id(fields)?;
        end(fields)?;
        self.tasks.get_mut(&id).ok_or_else(|| Failure::new("ENOENT", "no such task"))
    }

    // ── output ──

    /// Begins to read the output of a task.
    pub fn listen_to(&mut self, id: u64) {
        self.update_output(id, 0);
        self.update_output(id, 1);
    }

    /// Begins to read the output of a task that was created with `hold`: all who wanted it from its first byte on are attached.
    pub fn flow(&mut self, fields: &mut Fields) -> Outcome<Reply> {
        let id = self.task_id(fields)?;
        end(fields)?;
        if let Some(task) = self.tasks.get_mut(&id) {
            task.hold = false;
        }
        self.listen_to(id);
        self.check_drained(id);
        reply(json!({}))
    }

    /// Reads an output, or rests it while one of its readers is behind.
    pub fn update_output(&mut self, id: u64, which: usize) {
        let Some(task) = self.tasks.get(&id) else { return };
        let held_back = task.hold || self.held_back(&task.attachments, which, task.exit.is_some());
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Some(output) = task.outputs[which].as_mut().filter(|output| !output.ended) else { return };
        if output.watch.set((!held_back).then_some(epoll::IN)).is_err() {
            output.ended = true;
        }
    }

    pub fn output_ready(&mut self, id: u64, which: usize) {
        let mut buffer = std::mem::take(&mut self.buffer);
        self.read_output(id, which, &mut buffer[..TURN]);
        self.buffer = buffer;
    }

    fn read_output(&mut self, id: u64, which: usize, buffer: &mut [u8]) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Some(output) = task.outputs[which].as_mut().filter(|output| !output.ended) else { return };
        match (&output.watch.file).read(buffer) {
            Ok(count) if count > 0 => {
                task.last_byte = Instant::now();
                let data = &buffer[..count];
                if let Some(log) = &mut task.log {
                    log.write(which, data);
                }
                if !task.attachments.is_empty() {
                    let ids = task.attachments.clone();
                    self.pass_on(&ids, which, data);
                    self.update_output(id, which);
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) if task.tty && task.exit.is_none() => {
                // EIO: no process has the terminal open now, but one may open it again.
                let _ = output.watch.set(None);
                self.timers.after(REVIVE, Timer::Revive(id));
            }
            _ => {
                output.ended = true;
                let _ = output.watch.set(None);
                self.check_drained(id);
            }
        }
    }

    pub fn revive(&mut self, id: u64) {
        self.update_output(id, 0);
    }

    // ── stdin ──

    pub fn stdin_ready(&mut self, id: u64) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.flush_stdin();
        if !task.stdin_full() {
            for attachment in task.attachments.clone() {
                self.resume_input(attachment);
            }
        }
        self.check_stdin_gone(id);
    }

    /// Closes a task's stdin after what is still to be written; a terminal gets its end-of-input character.
    pub fn end_stdin(&mut self, id: u64) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if task.tty {
            task.write_stdin(END_OF_TRANSMISSION);
        } else if let Some(input) = &mut task.stdin {
            input.closing = true;
            task.flush_stdin();
        }
        self.check_stdin_gone(id);
    }

    /// Tells of a stdin that was closed: whoever holds a duplicate must close it too, or the task sees no end.
    pub fn check_stdin_gone(&mut self, id: u64) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if task.stdin.is_some() || !task.had_stdin {
            return;
        }
        task.had_stdin = false;
        let event = json!({"event": "stdin_closed", "task": task.name});
        for attachment in task.attachments.clone() {
            self.drop_attached_stdin(attachment);
        }
        self.publish(&event);
    }

    // ── the end ──

    pub fn task_ended(&mut self, id: u64, ended: Ended, unknown: bool) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if task.exit.is_some() {
            return;
        }
        task.exit = Some(Exit { ended, at: crate::clock::unix_seconds(), unknown });
        task.exited = Some(Instant::now());
        task.theirs = Fds::default();
        if let Some(pidfd) = &mut task.pidfd {
            let _ = pidfd.set(None);
        }
        // Slow readers may now fall behind, and a pty that rested is read to its end.
        self.listen_to(id);
        self.check_drained(id);
    }

    /// Reports the exit once the output is drained.
    pub fn check_drained(&mut self, id: u64) {
        let Some(task) = self.tasks.get(&id) else { return };
        let (Some(exited), false) = (task.exited, task.reported) else { return };
        let held_back = task.hold || (0..2).any(|which| self.held_back(&task.attachments, which, true));
        let quiet = task.last_byte.max(exited).elapsed();
        if task.drained() || exited.elapsed() >= DRAIN_LIMIT || (quiet >= QUIET && !held_back) {
            self.report(id);
        } else if !task.drain_timer {
            let wait = if held_back { QUIET } else { QUIET.saturating_sub(quiet) };
            self.timers.after(wait, Timer::Drain(id));
            if let Some(task) = self.tasks.get_mut(&id) {
                task.drain_timer = true;
            }
        }
    }

    pub fn drain_timer(&mut self, id: u64) {
        if let Some(task) = self.tasks.get_mut(&id) {
            task.drain_timer = false;
            self.check_drained(id);
        }
    }

    fn report(&mut self, id: u64) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.reported = true;
        task.stdin = None;
        task.had_stdin = false;
        if let Some(log) = &mut task.log {
            log.finish();
        }
        let mut record = task.exit_record().unwrap_or(Value::Null);
        if let Err(error) = task.write_exit_file(&record) {
            record["exit_file_error"] = json!(error.to_string());
        }
        let attachments = task.attachments.clone();
        record["event"] = json!("exit");
        self.let_attachments_end(&attachments);
        self.publish(&record);
    }

    /// A process that is not our child has ended: its status is in /proc until its parent has reaped it, then in its pidfd.
    pub fn adopted_ended(&mut self, id: u64) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Some(pidfd) = &mut task.pidfd else { return };
        let _ = pidfd.set(None);
        let seen = *task.ended_seen.get_or_insert_with(Instant::now);
        let unknown = Ended { code: 255, signal: 0, core: false };
        let unreaped = process::zombie_exit(task.pid, &pidfd.file);
        match unreaped.map_or_else(|| process::pidfd_exit(&pidfd.file), |ended| Ok(Some(ended))) {
            Ok(Some(ended)) => self.task_ended(id, ended, false),
            Ok(None) if seen.elapsed() < REAPED_WITHIN => {
                self.timers.after(Duration::from_millis(20), Timer::AdoptedExit(id));
            }
            _ => {
                // It may have been our child that ended before it was adopted: then we reaped it ourselves.
                let pid = task.pid;
                match self.recent.take(pid) {
                    Some(ended) => self.task_ended(id, ended, false),
                    None => self.task_ended(id, unknown, true),
                }
            }
        }
    }

    // ── ops ──

    pub fn close_stdin(&mut self, fields: &mut Fields) -> Outcome<Reply> {
        let id = self.task_id(fields)?;
        end(fields)?;
        self.end_stdin(id);
        reply(json!({}))
    }

    pub fn resize(&mut self, fields: &mut Fields) -> Outcome<Reply> {
        let (rows, columns) = (fields.need("rows")?, fields.need("cols")?);
        let task = self.task(fields)?;
        let Some(output) = task.outputs[0].as_ref().filter(|_| task.tty) else {
            return Err(Failure::new("ENOTTY", format!("task {:?} has no terminal", task.name)));
        };
        let resized = fd::set_window_size(&output.watch.file, rows, columns);
        resized.map_err(|error| Failure::io("cannot resize the terminal", &error))?;
        reply(json!({}))
    }

    pub fn kill(&mut self, fields: &mut Fields) -> Outcome<Reply> {
        let signal: i32 = fields.need("signal")?;
        let task = self.task(fields)?;
        let pidfd = task.pidfd.as_ref().filter(|_| task.exit.is_none());
        let pidfd = pidfd.ok_or_else(|| Failure::new("ESRCH", format!("task {:?} has ended", task.name)))?;
        let sent = process::pidfd_send_signal(&pidfd.file, signal);
        sent.map_err(|error| Failure::io(format!("cannot send signal {signal} to task {:?}", task.name), &error))?;
        reply(json!({}))
    }

    pub fn reopen_log(&mut self, fields: &mut Fields) -> Outcome<Reply> {
        let task = self.task(fields)?;
        let Some(log) = &mut task.log else {
            return Err(Failure::new("ENOENT", format!("task {:?} has no log", task.name)));
        };
        log.reopen().map_err(|error| Failure::io("cannot reopen the log", &error))?;
        reply(json!({}))
    }

    /// All tasks by name, as many as fit; `more` says that others come `after` the last.
    pub fn list(&mut self, fields: &mut Fields) -> Outcome<Reply> {
        let after: String = fields.take("after")?.unwrap_or_default();
        end(fields)?;
        let mut names: Vec<(&String, &u64)> = self.names.iter().filter(|(name, _)| **name > after).collect();
        names.sort();
        let (mut tasks, mut bytes, mut more) = (Vec::new(), 0, false);
        for task in names.into_iter().filter_map(|(_, id)| self.tasks.get(id)) {
            let summary = task.summary();
            bytes += summary.to_string().len() + 1;
            if bytes > LIST_BYTES && !tasks.is_empty() {
                more = true;
                break;
            }
            tasks.push(summary);
        }
        reply(json!({"tasks": tasks, "more": more}))
    }

    pub fn escrow(&mut self, fields: &mut Fields) -> Outcome<Reply> {
        let task = self.task(fields)?;
        let fds = task.escrow().map_err(|error| Failure::io("cannot duplicate the stdio of the task", &error))?;
        let value = task.adoption();
        Ok(Some((value, fds)))
    }

    pub fn forget(&mut self, fields: &mut Fields) -> Outcome<Reply> {
        let id = self.task_id(fields)?;
        end(fields)?;
        match self.tasks.get(&id) {
            Some(task) if !task.reported => {
                return Err(Failure::new("EBUSY", format!("task {:?} has not ended", task.name)));
            }
            Some(task) => drop(self.names.remove(&task.name)),
            None => {}
        }
        self.tasks.remove(&id);
        self.trim_later();
        reply(json!({}))
    }
}
