//! Ops `streams` and `ended`: tasks that are no processes here. A kernel of their own runs them: it is given the other ends
//! of their streams, and whoever hears from it tells how they ended.

use crate::create::NO_PROCESS;
use crate::protocol::{reply, Failure, Fds, Fields, Outcome, Reply};
use crate::server::{end, Asker, Keeper};
use drupe_sys::process::Ended;
use serde_json::json;
use std::io;

/// The other ends, as the answer names them.
const THEIRS: [&str; 3] = ["their_stdin", "their_stdout", "their_stderr"];

impl Keeper {
    pub fn streams(&mut self, asker: &Asker, fields: &mut Fields, fds: &mut Fds) -> Outcome<Reply> {
        let creation = self.creation(fields, fds)?;
        end(fields)?;
        fds.finish()?;
        let (id, mut task, ends, theirs, attached) = creation.without_process()?;
        let failed = |error: io::Error| Failure::io("cannot hold the streams of the task", &error);
        task.connect(&self.epoll, id, ends).map_err(failed)?;
        let mut given = task.escrow().map_err(failed)?;
        THEIRS.into_iter().zip(theirs).for_each(|(name, fd)| given.push(name, fd));
        let mut answer = json!({"pid": NO_PROCESS, "started_at": task.started_at});
        self.names.insert(task.name.clone(), id);
        self.tasks.insert(id, task);
        if let Some(attached) = attached {
            answer["attachment"] = json!(self.attach_to(id, asker, attached)?);
        }
        self.listen_to(id);
        Ok(Some((answer, given)))
    }

    pub fn ended(&mut self, fields: &mut Fields) -> Outcome<Reply> {
        let id = self.task_id(fields)?;
        let ended = Ended { code: fields.need("code")?, signal: fields.need("signal")?, core: false };
        end(fields)?;
        match self.tasks.get(&id) {
            Some(task) if task.pid != NO_PROCESS => {
                return Err(Failure::invalid(format!("task {:?} is a process: its end is seen here", task.name)));
            }
            _ => self.task_ended(id, ended, false),
        }
        reply(json!({}))
    }
}
