//! Saving and restoring by the control socket.

use drupe_packets::{reply, Failure, Fds, Fields, Outcome, Reply};
use serde_json::json;

use super::{take_config, Control};
use crate::containers::{Descriptors, Successor};
use crate::pod::Pod;
use crate::settings::{Settings, Tree};
use crate::snapshot;

/// How long guests may take to come to rest.
const REST_WITHIN_NS: u64 = 10_000_000_000;

impl Control {
    /// Everything comes to rest, is written down, and goes on when whoever has asked says so, or hangs up.
    pub(super) fn save(&mut self, pod: &mut Pod, id: u64, fields: Fields, mut fds: Fds) -> Outcome<Reply> {
        fields.finish()?;
        let names = ["state", "memory"].map(String::from);
        let [state, memory] = <[_; 2]>::try_from(fds.take_all(&names)?).map_err(|_| Failure::invalid("descriptors"))?;
        fds.finish()?;
        if pod.kernel.is_at_rest() {
            return Err(Failure::new("EBUSY", "the pod is being saved already"));
        }
        let latest_ns = crate::containers::monotonic_ns(pod) + REST_WITHIN_NS;
        let rested = pod.kernel.come_to_rest(latest_ns);
        rested.map_err(|pid| Failure::new("ETIMEDOUT", format!("process {pid} does not come to rest")))?;
        let written = snapshot::write(pod, &self.containers, &state, memory);
        match written {
            Ok(()) => self.saver = Some(id),
            Err(_) => pod.kernel.go_on_all(),
        }
        written.and_then(|()| reply(json!({})))
    }

    /// The end of the rest after `save`; or, of a container that was restored, its beginning.
    pub(super) fn go_on(&mut self, pod: &mut Pod, mut fields: Fields) -> Outcome<Reply> {
        let container: Option<String> = fields.take("container")?;
        fields.finish()?;
        match container {
            Some(container) => self.containers.go_on(pod, &container)?,
            None => {
                self.saver = None;
                pod.kernel.go_on_all();
            }
        }
        reply(json!({}))
    }

    /// Nobody may rest for somebody who is gone.
    pub(super) fn release_abandoned(&mut self, pod: &mut Pod) {
        if self.saver.is_some_and(|id| !self.connections.contains_key(&id)) {
            self.saver = None;
            pod.kernel.go_on_all();
        }
    }

    pub(super) fn restore(&mut self, pod: &mut Pod, fields: Fields, fds: Fds) -> Outcome<Reply> {
        let mut fds: Descriptors = fds.0.into_iter().collect();
        let mut config = take_config(fields, &mut fds)?;
        let containers: Vec<Fields> = config.need("containers")?;
        config.finish()?;
        let successors = containers.into_iter().map(successor).collect::<Outcome<Vec<_>>>()?;
        let pids = self.containers.restore(pod, successors, fds)?;
        reply(pids)
    }
}

/// As of `start`, with the id and the one that it had; how its process was to begin means nothing any more.
fn successor(mut fields: Fields) -> Outcome<Successor> {
    let (id, old) = (fields.need("id")?, fields.need("old")?);
    let tree = Tree::take(&mut fields)?;
    Settings::take(&mut fields)?;
    fields.finish()?;
    Ok(Successor { id, old, tree })
}
