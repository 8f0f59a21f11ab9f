//! Ops `streams` and `ended`: tasks that are no processes here. A kernel of their own runs them: it is given the other ends
//! of their streams, and whoever hears from it tells how they ended.

use crate::create::{WithoutProcess, NO_PROCESS};
use crate::protocol::{reply, Failure, Fds, Fields, Outcome, Reply};
use crate::server::{end, Asker, Keeper};
use drupe_sys::process::Ended;
use serde_json::json;
use std::io;

/// The other ends, as answers name them.
pub const THEIRS: [&str; 3] = ["their_stdin", "their_stdout", "their_stderr"];

impl Keeper {
    pub fn streams(&mut self, asker: &Asker, fields: &mut Fields, fds: &mut Fds) -> Outcome<Reply> {
        let creation = self.creation(fields, fds)?;
        end(fields)?;
        fds.finish()?;
        let WithoutProcess { id, mut task, ends, theirs, attached } = creation.without_process()?;
        let failed = |error: io::Error| Failure::io("cannot hold the streams of the task", &error);
        task.connect(&self.epoll, id, ends).map_err(failed)?;
        THEIRS.into_iter().zip(theirs).for_each(|(name, fd)| task.theirs.push(name, fd));
        let held = task.escrow().map_err(failed)?;
        let mut answer = json!({"pid": NO_PROCESS, "started_at": task.started_at});
        self.names.insert(task.name.clone(), id);
        self.tasks.insert(id, task);
        if let Some(attached) = attached {
            answer["attachment"] = json!(self.attach_to(id, asker, attached)?);
        }
        self.listen_to(id);
        Ok(Some((answer, held)))
    }

    /// The other ends, for whoever runs the task now: once.
    pub fn take_streams(&mut self, fields: &mut Fields) -> Outcome<Reply> {
        let id = self.task_id(fields)?;
        end(fields)?;
        let theirs = self.tasks.get_mut(&id).map(|task| std::mem::take(&mut task.theirs)).unwrap_or_default();
        match theirs.0.is_empty() {
            true => Err(Failure::new("EBUSY", "the streams of the task were taken before")),
            false => Ok(Some((json!({}), theirs))),
        }
    }

    pub fn ended(&mut self, fields: &mut Fields) -> Outcome<Reply> {
        let id = self.task_id(fields)?;
        let ended = Ended { code: fields.need("code")?, signal: fields.need("signal")?, core: false };
        end(fields)?;
        match self.tasks.get(&id) {
            Some(task) if task.pid != NO_PROCESS => {
                return Err(Failure::invalid(format!("task {:?} is a process: its end is seen here", task.name)));
            }
            Some(_) => self.task_ended(id, ended, false),
            None => {}
        }
        reply(json!({}))
    }
}
