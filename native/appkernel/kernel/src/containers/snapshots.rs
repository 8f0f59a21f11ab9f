//! Containers of a saved pod, and of one that goes on.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use drupe_appkernel_abi::coded;
use drupe_appkernel_core::pids::seen;
use drupe_appkernel_vfs::MountNamespace;
use drupe_packets::{Failure, Outcome};
use serde_json::{json, Value};

use super::{failed, first_filter, take_fd, take_streams, unix_seconds, Console};
use super::{Container, Containers, Descriptors, Task};
use crate::pod::Pod;
use crate::settings::Tree;
use crate::snapshot::{self, Made, Role, Streams};
use crate::tree::{Builder, Root};

coded! {
    /// A container and its first process; whether that has a terminal, which is number 0 of the container's. root and mounts: what of its tree lies in memory, by the number of the mount.
    pub struct SavedContainer {
        pub id: String,
        pub number: u32,
        pub view: u32,
        pub pid: u32,
        pub has_terminal: bool,
        pub trees: Vec<(u32, u32)>,
    }
}

/// A container that is to go on: its id, the one that it had, and its tree of files.
pub struct Successor {
    pub id: String,
    pub old: String,
    pub tree: Tree,
}

impl Containers {
    /// What is to be saved of them beside the kernel: in the order of their numbers, with their namespaces.
    pub fn saved(&self) -> Outcome<(Vec<SavedContainer>, Vec<Arc<MountNamespace>>)> {
        let mut all: Vec<(&String, &Container)> = self.containers.iter().collect();
        all.sort_by_key(|(_, container)| container.number);
        let saved = all.iter().map(|(id, container)| {
            let task = self.tasks.get(&((*id).clone(), String::new()));
            let task = task.filter(|task| task.ended.is_none());
            let task = task.ok_or_else(|| refused(&format!("container {id} has ended")))?;
            let (number, view, pid) = (container.number, container.view, task.pid);
            let has_terminal = task.console.is_some();
            Ok(SavedContainer { id: (*id).clone(), number, view, pid, has_terminal, trees: Vec::new() })
        });
        let namespaces = all.iter().map(|(_, container)| Arc::clone(&container.namespace)).collect();
        Ok((saved.collect::<Outcome<Vec<_>>>()?, namespaces))
    }

    /// The standard streams of first processes, by open file: which container's, which one.
    pub fn streams(&self, saved: &[SavedContainer]) -> HashMap<u64, Role> {
        let of = |(at, container): (usize, &SavedContainer)| {
            let task = self.tasks.get(&(container.id.clone(), String::new()))?;
            let open =
                task.streams.iter().zip(0u8..).filter_map(|(stream, which)| Some((stream.upgrade()?.id(), which)));
            Some(open.map(move |(id, which)| (id, Role { container: at as u32, which })).collect::<Vec<_>>())
        };
        saved.iter().enumerate().filter_map(of).flatten().collect()
    }

    /// Make the containers of what was saved again, none of which goes on yet: their first processes, by container.
    pub fn restore(&mut self, pod: &mut Pod, mut successors: Vec<Successor>, mut fds: Descriptors) -> Outcome<Value> {
        if !self.containers.is_empty() {
            return Err(Failure::new("EBUSY", "the kernel has containers already"));
        }
        let (state, memory) = (take_fd(&mut fds, "state")?, take_fd(&mut fds, "memory")?);
        let opened = snapshot::open(pod, &state, memory)?;
        let (mut made, mut streams) = (Vec::new(), Vec::new());
        for saved in &opened.containers {
            let at = successors.iter().position(|one| one.old == saved.id);
            let none = || Failure::invalid(format!("nothing goes on from container {}", saved.id));
            let successor = successors.swap_remove(at.ok_or_else(none)?);
            let of = |name: &str| format!("{name}:{}", successor.id);
            let names = ["stdin", "stdout", "stderr", "root"];
            let own = names.iter().filter_map(|name| Some((name.to_string(), fds.remove(&of(name))?)));
            let mut own: Descriptors = own.collect();
            streams.push(take_streams(&mut own)?);
            let root = match &successor.tree.root {
                Some(place) => Root::Shared(place.clone()),
                None => Root::Image(take_fd(&mut own, "root")?),
            };
            made.push((saved.clone(), root, successor));
        }
        self.build(pod, made, opened, streams)
    }

    fn build(
        &mut self,
        pod: &mut Pod,
        made: Vec<(SavedContainer, Root, Successor)>,
        opened: Made,
        fds: Vec<[OwnedFd; 3]>,
    ) -> Outcome<Value> {
        let (mut namespaces, mut streams) = (Vec::new(), Streams::default());
        let mut pids = serde_json::Map::new();
        for ((saved, root, Successor { id, tree, .. }), fds) in made.into_iter().zip(fds) {
            let builder = Builder::with(pod, root, opened.trees_of(&saved)?)?;
            builder.mount_all(tree.mounts)?;
            builder.cover(&tree.masked, &tree.protected)?;
            let (namespace, root) = builder.finish(tree.read_only);
            namespaces.push(Arc::clone(&namespace));
            let (number, view, pid) = (saved.number, saved.view, saved.pid);
            self.last = self.last.max(number);
            let seccomp = first_filter(pod, tree.filter)?;
            pod.kernel.bound_tasks(Some(number), tree.tasks);
            let container = Container { number, view, namespace, root, seccomp };
            let console = match saved.has_terminal {
                true => Some(terminal_again(pod, &container, fds, &mut streams)?),
                false => streams.add(pod, fds).map(|()| None)?,
            };
            self.containers.insert(id.clone(), container);
            let key = (id.clone(), String::new());
            self.by_pid.insert(pid, key.clone());
            let (started_at, streams) = (unix_seconds(pod), streams.of(pids.len()));
            self.tasks.insert(key, Task { pid, started_at, ended: None, console, streams });
            pids.insert(id, json!(seen(pid)));
        }
        opened.restore(pod, &namespaces, &streams)?;
        Ok(json!({ "pids": pids }))
    }

    /// Have a container that was restored go on.
    pub fn go_on(&self, pod: &mut Pod, id: &str) -> Outcome<()> {
        let number = self.container(id)?.number;
        let gone = pod.kernel.go_on_container(number);
        gone.map_err(|_| Failure::new("EBUSY", format!("container {id:?} does not wait to go on")))
    }
}

/// The terminal of a container's first process, as new; what it was like is restored with the kernel.
fn terminal_again(
    pod: &Pod,
    container: &Container,
    [input, output, _]: [OwnedFd; 3],
    streams: &mut Streams,
) -> Outcome<Arc<Console>> {
    let console = pod.console(&container.namespace, &container.root, false);
    let console = console.map_err(|errno| failed("a terminal", errno))?;
    console.attach(Some(input), Some(output));
    streams.add_none();
    Ok(console)
}

/// It cannot be saved, or cannot go on.
pub fn refused(why: &str) -> Failure {
    Failure::new("EOPNOTSUPP", why)
}
