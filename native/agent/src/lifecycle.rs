//! Making, starting and removing containers and their processes.

use crate::agent::Agent;
use crate::bundle;
use crate::children::Exit;
use crate::container::{Container, Phase, Process, INIT};
use crate::crun::{self, What};
use crate::fault::{fault, invalid, wrong_state, Code, During, Reply};
use crate::streams::Streams;
use std::path::Path;
use std::sync::Arc;

/// Ids become names of directories and cgroups.
pub fn check_id(id: &str) -> Reply<()> {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match id.starts_with(|c: char| c.is_ascii_alphanumeric()) && id.len() <= 128 && id.chars().all(is_fine) {
        true => Ok(()),
        false => Err(invalid(format!("{id:?} is no id: letters, digits, '.', '_', '-' only"))),
    }
}

/// Makes the container of a bundle from `Guest.PutBundle`; it waits for `start`.
pub fn create(agent: &Arc<Agent>, id: &str, bundle: &Path, terminal: bool, wanted: [bool; 3]) -> Reply<u32> {
    let streams = agent.with(id, |container| {
        if container.bundle != bundle {
            return Err(invalid(format!("the bundle of {id} is {}", container.bundle.display())));
        }
        let init = container.init();
        init.move_on(Phase::Prepared, Phase::Busy)?;
        (init.terminal, init.wanted, init.streams) = (terminal, wanted, Arc::default());
        Ok(init.streams.clone())
    })?;
    let result = bundle::set_terminal(bundle, terminal)
        .and_then(|()| crun::make(agent, id, &What::Container { bundle }, terminal, wanted, &streams));
    let pid = made(agent, id, INIT, result, Phase::Created)?;
    agent.with(id, |container| {
        agent.oom.add(&container.cgroup);
        Ok(pid)
    })
}

/// Describes a process that `start` will start in a running container.
pub fn add_exec(agent: &Agent, id: &str, exec_id: &str, process: Process) -> Reply<()> {
    check_id(exec_id)?;
    agent.with(id, |container| {
        if container.processes.contains_key(exec_id) {
            return Err(fault(Code::AlreadyExists, format!("container {id} has a process {exec_id:?} already")));
        }
        container.processes.insert(exec_id.into(), process);
        Ok(())
    })
}

pub fn start(agent: &Arc<Agent>, id: &str, exec_id: &str) -> Reply<u32> {
    if exec_id != INIT {
        return start_exec(agent, id, exec_id);
    }
    let (pid, bundle) = agent.with(id, |container| {
        container.init().move_on(Phase::Created, Phase::Busy)?;
        Ok((container.init().pid, container.bundle.clone()))
    })?;
    let result = crun::start(agent, id, &bundle);
    agent.change(|state| {
        let init = state.container(id)?.init();
        if init.phase == Phase::Busy {
            init.phase = if result.is_ok() { Phase::Running } else { Phase::Created };
        }
        result.map(|()| pid)
    })
}

fn start_exec(agent: &Arc<Agent>, id: &str, exec_id: &str) -> Reply<u32> {
    let (spec, terminal, wanted, streams) = agent.with(id, |container| {
        if container.init().phase != Phase::Running || container.is_paused {
            return Err(wrong_state(format!("container {id} does not run")));
        }
        let process = container.process(exec_id)?;
        process.move_on(Phase::Prepared, Phase::Busy)?;
        Ok((process.spec.clone(), process.terminal, process.wanted, process.streams.clone()))
    })?;
    let result = crun::make(agent, id, &What::Process { spec: &spec }, terminal, wanted, &streams);
    made(agent, id, exec_id, result, Phase::Running)
}

/// Notes what crun has made, or failed to; it may have ended meanwhile.
fn made(agent: &Agent, id: &str, exec_id: &str, result: Reply<u32>, phase: Phase) -> Reply<u32> {
    agent.change(|state| {
        let ended = result.as_ref().ok().and_then(|pid| state.children.take_unknown(*pid as i32));
        let crate::agent::State { containers, events, .. } = state;
        let container = containers.get_mut(id).ok_or_else(|| wrong_state("the container was removed meanwhile"))?;
        let process = container.process(exec_id)?;
        process.phase = if result.is_ok() { phase } else { Phase::Prepared };
        process.pid = *result.as_ref().unwrap_or(&0);
        if let Some(exit) = ended {
            container.end(id, exec_id, exit, events);
        }
        result
    })
}

/// Removes what has ended or never was started; answers its pid and end.
pub fn delete(agent: &Arc<Agent>, id: &str, exec_id: &str) -> Reply<(u32, Option<Exit>)> {
    let (pid, exit) = agent.with(id, |container| {
        let process = container.process(exec_id)?;
        if process.is_alive() || process.phase == Phase::Busy {
            return Err(wrong_state(format!("{id} {exec_id} has not ended")));
        }
        Ok((process.pid, process.exit))
    })?;
    if exec_id != INIT {
        agent.with(id, |container| Ok(container.processes.remove(exec_id)))?;
        return Ok((pid, exit));
    }
    let (path, cgroup) = agent.with(id, |container| {
        container.init().phase = Phase::Busy;
        Ok((container.bundle.clone(), container.cgroup.clone()))
    })?;
    let removed = if pid == 0 { Ok(()) } else { crun::delete(agent, id, &path, &cgroup) };
    let removed = removed.and_then(|()| bundle::remove(&path));
    agent.change(|state| match removed {
        Ok(()) => Ok(state.containers.remove(id)),
        Err(fault) => {
            state.container(id)?.init().phase = Phase::Stopped;
            Err(fault)
        }
    })?;
    Ok((pid, exit))
}

pub fn streams(agent: &Agent, id: &str, exec_id: &str) -> Reply<Arc<Streams>> {
    agent.with(id, |container| Ok(container.process(exec_id)?.streams.clone()))
}

pub fn signal(process: &Process, signal: u32) -> Reply<()> {
    match process.is_alive() {
        true => signal_pid(process.pid, signal),
        false => Err(crate::fault::not_found("the process has ended or was never started")),
    }
}

/// Under the agent's lock and for a process that is not reaped: the pid is still its own.
pub fn signal_pid(pid: u32, signal: u32) -> Reply<()> {
    let signal = i32::try_from(signal).ok().filter(|signal| (1..=64).contains(signal));
    let signal = signal.ok_or_else(|| invalid("signals are 1 to 64"))?;
    match drupe_sys::process::kill(pid as i32, signal) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        result => result.during(|| format!("cannot signal {pid}")),
    }
}

/// The pid of a container's first process. FailedPrecondition when it has none.
pub fn living(agent: &Agent, id: &str) -> Reply<u32> {
    agent.with(id, |container| match container.init().is_alive() {
        true => Ok(container.init().pid),
        false => Err(wrong_state(format!("container {id} does not run"))),
    })
}

/// Adds a container whose bundle is ready.
pub fn add(agent: &Agent, id: &str, container: Container) {
    agent.change(|state| state.containers.insert(id.into(), container));
}
