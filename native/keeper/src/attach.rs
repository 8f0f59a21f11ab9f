//! Ops `attach`, `detach`: a client's descriptors joined to the stdio of a task.

use crate::foreign::{self, Kind, Pending};
use crate::protocol::{reply, Failure, Fds, Fields, Outcome, Reply};
use crate::server::{end, Asker, Keeper, TURN};
use crate::timers::Timer;
use crate::watch::{Source, Watch};
use drupe_sys::epoll;
use serde_json::json;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// What a slow reader may be behind: nothing while the task lives (it waits then), and this much once it has ended, so that
/// its end is known in time.
const BEHIND_ENDED: usize = 1024 * 1024;

/// Descriptors that are to be attached, as a client sent them.
pub struct Attached {
    stdin: Option<(OwnedFd, Kind)>,
    outputs: [Option<(OwnedFd, Kind)>; 2],
    close_stdin: bool,
}

impl Attached {
    /// options: `close_stdin` (at the end of the client's stdin, close the task's). prefix: of the descriptors' names.
    pub fn from_request(mut options: Fields, fds: &mut Fds, prefix: &str) -> Outcome<Attached> {
        let close_stdin = options.take("close_stdin")?.unwrap_or(false);
        options.finish()?;
        let mut take = |name: &str, writable| {
            let own = fds.take(&format!("{prefix}{name}")).map(|fd| foreign::own(fd, writable));
            own.transpose().map_err(|error| Failure::io(format!("cannot use the attached {name}"), &error))
        };
        let outputs = [take("stdout", true)?, take("stderr", true)?];
        let attached = Attached { stdin: take("stdin", false)?, outputs, close_stdin };
        if attached.stdin.is_none() && attached.outputs.iter().all(Option::is_none) {
            return Err(Failure::new("EBADF", "there is no descriptor to attach"));
        }
        Ok(attached)
    }
}

struct Writer {
    watch: Watch,
    kind: Kind,
    pending: Pending,
}

pub struct Attachment {
    connection: u64,
    task: u64,
    name: String,
    stdin: Option<(Watch, Kind)>,
    outputs: [Option<Writer>; 2],
    close_stdin: bool,
    /// It ends, for this reason, once its last byte is written.
    ending: Option<&'static str>,
}

impl Attachment {
    /// Passes output on; a writer whose reader has gone is dropped.
    fn push(&mut self, which: usize, data: &[u8]) {
        let Some(writer) = &mut self.outputs[which] else { return };
        let pushed = writer.pending.push(&writer.watch.file, writer.kind, data);
        self.after_write(which, pushed);
    }

    fn after_write(&mut self, which: usize, result: io::Result<()>) {
        let Some(writer) = &mut self.outputs[which] else { return };
        let events = if writer.pending.is_empty() { 0 } else { epoll::OUT };
        if result.and_then(|()| writer.watch.set(Some(events))).is_err() {
            self.outputs[which] = None;
        }
    }

    fn behind(&self, which: usize) -> usize {
        self.outputs[which].as_ref().map_or(0, |writer| writer.pending.len())
    }
}

impl Keeper {
    pub fn attach(&mut self, asker: &Asker, fields: &mut Fields, fds: &mut Fds) -> Outcome<Reply> {
        let id = self.task_id(fields)?;
        let attached = Attached::from_request(std::mem::replace(fields, Fields(serde_json::Map::new())), fds, "")?;
        fds.finish()?;
        let attachment = self.attach_to(id, asker, attached)?;
        reply(json!({"attachment": attachment}))
    }

    pub fn attach_to(&mut self, task_id: u64, asker: &Asker, attached: Attached) -> Outcome<u64> {
        let id = self.new_id();
        let Some(task) = self.tasks.get_mut(&task_id) else { return Err(Failure::new("ENOENT", "no such task")) };
        if task.reported {
            return Err(Failure::new("ESRCH", format!("task {:?} has ended", task.name)));
        }
        let failed = |error: io::Error| Failure::io("cannot use an attached descriptor", &error);
        let mut attachment = Attachment {
            connection: asker.connection,
            task: task_id,
            name: task.name.clone(),
            stdin: None,
            outputs: [None, None],
            close_stdin: attached.close_stdin,
            ending: None,
        };
        if let Some((fd, kind)) = attached.stdin {
            attachment.stdin = Some((Watch::new(&self.epoll, fd, Source::AttachedStdin, id), kind));
        }
        let sources = [Source::AttachedStdout, Source::AttachedStderr];
        for (which, fd) in attached.outputs.into_iter().enumerate() {
            if let Some((fd, kind)) = fd {
                let mut watch = Watch::new(&self.epoll, fd, sources[which], id);
                watch.set(Some(0)).map_err(failed)?;
                attachment.outputs[which] = Some(Writer { watch, kind, pending: Pending::default() });
            }
        }
        task.attachments.push(id);
        self.attachments.insert(id, attachment);
        self.resume_input(id);
        Ok(id)
    }

    pub fn detach(&mut self, fields: &mut Fields) -> Outcome<Reply> {
        let task = self.task_id(fields)?;
        let id: u64 = fields.need("attachment")?;
        end(fields)?;
        match self.attachments.get(&id) {
            Some(attachment) if attachment.task == task => {
                // The last words of a task that has ended are still delivered.
                if attachment.ending.is_none() {
                    let input_ends = attachment.close_stdin && attachment.stdin.is_some();
                    self.end_attachment(id, "detach");
                    if input_ends {
                        self.end_stdin(task);
                    }
                }
            }
            _ => return Err(Failure::new("ENOENT", format!("no attachment {id}"))),
        }
        reply(json!({}))
    }

    /// Hands output of a task to all that are attached to it.
    pub fn pass_on(&mut self, ids: &[u64], which: usize, data: &[u8]) {
        for id in ids {
            if let Some(attachment) = self.attachments.get_mut(id) {
                attachment.push(which, data);
                self.check_attachment(*id);
            }
        }
    }

    /// Whether a reader is so far behind that the task has to wait.
    pub fn held_back(&self, ids: &[u64], which: usize, ended: bool) -> bool {
        let allowed = if ended { BEHIND_ENDED } else { 0 };
        let behind = |id: &u64| self.attachments.get(id).map_or(0, |attachment| attachment.behind(which));
        ids.iter().any(|id| behind(id) > allowed)
    }

    /// A reader has room again, or has gone.
    pub fn attached_room(&mut self, id: u64, which: usize, ready: u32) {
        let Some(attachment) = self.attachments.get_mut(&id) else { return };
        let task = attachment.task;
        if let Some(writer) = &mut attachment.outputs[which] {
            let gone = ready & (epoll::ERR | epoll::HUP) != 0;
            let result = match gone {
                true => Err(io::ErrorKind::BrokenPipe.into()),
                false => writer.pending.flush(&writer.watch.file, writer.kind),
            };
            attachment.after_write(which, result);
        }
        self.check_attachment(id);
        self.update_output(task, which);
    }

    /// Ends an attachment that has nothing more to do.
    fn check_attachment(&mut self, id: u64) {
        let Some(attachment) = self.attachments.get(&id) else { return };
        let all_gone = attachment.outputs.iter().all(Option::is_none);
        let written = attachment.behind(0) + attachment.behind(1) == 0;
        match attachment.ending {
            Some(reason) if written => self.end_attachment(id, reason),
            None if all_gone && attachment.stdin.is_none() => self.end_attachment(id, "closed"),
            _ => {}
        }
    }

    fn end_attachment(&mut self, id: u64, reason: &str) {
        let Some(attachment) = self.attachments.remove(&id) else { return };
        if let Some(task) = self.tasks.get_mut(&attachment.task) {
            task.attachments.retain(|known| *known != id);
        }
        let event = json!({"event": "detached", "task": attachment.name, "attachment": id, "reason": reason});
        self.send(attachment.connection, &event, Vec::new());
        let task = attachment.task;
        drop(attachment);
        self.update_output(task, 0);
        self.update_output(task, 1);
    }

    /// No more output will come for these.
    pub fn let_attachments_end(&mut self, ids: &[u64]) {
        for id in ids {
            if let Some(attachment) = self.attachments.get_mut(id) {
                attachment.stdin = None;
                attachment.ending = Some("exit");
                self.check_attachment(*id);
            }
        }
    }

    // ── stdin ──

    /// Watches the client's stdin again.
    pub fn resume_input(&mut self, id: u64) {
        let Some(attachment) = self.attachments.get_mut(&id) else { return };
        let Some((watch, _)) = &mut attachment.stdin else { return };
        if watch.set(Some(epoll::IN)).is_err() {
            attachment.stdin = None;
        } else if watch.always_ready {
            self.timers.after(Duration::ZERO, Timer::PumpStdin(id));
        }
    }

    /// The client's stdin has bytes: they go to the task's as far as there is room.
    pub fn attached_input(&mut self, id: u64) {
        let Some(attachment) = self.attachments.get_mut(&id) else { return };
        let Some((watch, kind)) = &mut attachment.stdin else { return };
        let task_id = attachment.task;
        let Some(task) = self.tasks.get_mut(&task_id) else { return };
        if task.stdin_full() {
            let _ = watch.set(None);
            return;
        }
        let open = task.stdin.as_ref().is_some_and(|input| !input.closing);
        let count = match foreign::read(&watch.file, *kind, &mut self.buffer[..TURN]) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
            result => result.unwrap_or(0),
        };
        if count > 0 && open {
            task.write_stdin(&self.buffer[..count]);
            if task.stdin_full() {
                let _ = watch.set(None);
            } else if watch.always_ready {
                self.timers.after(Duration::ZERO, Timer::PumpStdin(id));
            }
        } else {
            // The client's stdin ended, or nobody wants more of it.
            attachment.stdin = None;
            if attachment.close_stdin && open {
                self.end_stdin(task_id);
            }
        }
        self.check_stdin_gone(task_id);
        self.check_attachment(id);
    }

    pub fn drop_attached_stdin(&mut self, id: u64) {
        if let Some(attachment) = self.attachments.get_mut(&id) {
            attachment.stdin = None;
        }
        self.check_attachment(id);
    }
}
