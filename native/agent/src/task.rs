//! containerd's Task API (containerd.task.v3): https://github.com/containerd/containerd/blob/main/docs/runtime-v2.md

use crate::container::{Container, Phase, Process, INIT};
use crate::fault::{fault, wrong_state, Code, Reply};
use crate::proto::task::*;
use crate::proto::types::ProcessInfo;
use crate::proto::wellknown::{Any, Empty};
use crate::server::{unary, Call, Outcome};
use crate::{clock, crun, lifecycle, processes, stats};
use std::collections::BTreeSet;
use std::path::Path;

pub const NAME: &str = "containerd.task.v3.Task";

/// How often the tree of an exec is looked at for more.
const MAX_ROUNDS: usize = 16;

// containerd.v1.types.Status
const CREATED: i32 = 1;
const RUNNING: i32 = 2;
const STOPPED: i32 = 3;
const PAUSED: i32 = 4;

pub fn call(call: &Call, method: &str, payload: &[u8]) -> Reply<Outcome> {
    match method {
        "State" => unary(payload, |request| state(call, &request)),
        "Create" => unary(payload, |request| create(call, &request)),
        "Start" => unary(payload, |request: StartRequest| {
            lifecycle::start(&call.agent, &request.id, &request.exec_id).map(|pid| StartResponse { pid })
        }),
        "Delete" => unary(payload, |request| delete(call, &request)),
        "Pids" => unary(payload, |request| pids(call, &request)),
        "Pause" => unary(payload, |request: PauseRequest| freeze(call, &request.id, true)),
        "Resume" => unary(payload, |request: ResumeRequest| freeze(call, &request.id, false)),
        "Checkpoint" => Err(fault(Code::Unimplemented, "no checkpoint inside of a guest: save the machine instead")),
        "Kill" => unary(payload, |request| kill(call, &request)),
        "Exec" => unary(payload, |request| exec(call, &request)),
        "ResizePty" => unary(payload, |request: ResizePtyRequest| {
            let streams = lifecycle::streams(&call.agent, &request.id, &request.exec_id)?;
            streams.resize(request.width, request.height).map(|()| Empty {})
        }),
        "CloseIO" => unary(payload, |request: CloseIORequest| {
            let streams = lifecycle::streams(&call.agent, &request.id, &request.exec_id)?;
            if request.stdin {
                streams.close_input();
            }
            Ok(Empty {})
        }),
        "Update" => unary(payload, |request| update(call, request)),
        "Wait" => unary(payload, |request| wait(call, &request)),
        "Stats" => unary(payload, |request: StatsRequest| {
            let cgroup = call.agent.with(&request.id, |container| Ok(container.cgroup.clone()))?;
            Ok(StatsResponse { stats: Some(stats::of(&cgroup)) })
        }),
        "Connect" => unary(payload, |request| connect(call, &request)),
        "Shutdown" => unary(payload, |request| shutdown(call, &request)),
        _ => Err(fault(Code::Unimplemented, format!("service {NAME} has no method {method:?}"))),
    }
}

fn create(call: &Call, request: &CreateTaskRequest) -> Reply<CreateTaskResponse> {
    if !request.checkpoint.is_empty() {
        return Err(fault(Code::Unimplemented, "no container of a guest is restored from a checkpoint"));
    }
    let wanted = [&request.stdin, &request.stdout, &request.stderr].map(|stream| !stream.is_empty());
    let bundle = Path::new(&request.bundle);
    let pid = lifecycle::create(&call.agent, &request.id, bundle, request.terminal, wanted)?;
    Ok(CreateTaskResponse { pid })
}

fn exec(call: &Call, request: &ExecProcessRequest) -> Reply<Empty> {
    let wanted = [&request.stdin, &request.stdout, &request.stderr].map(|stream| !stream.is_empty());
    let spec = request.spec.as_ref().map(|spec| spec.value.clone()).unwrap_or_default();
    let process = Process::new(request.terminal, wanted, spec);
    lifecycle::add_exec(&call.agent, &request.id, &request.exec_id, process)?;
    Ok(Empty {})
}

fn delete(call: &Call, request: &DeleteRequest) -> Reply<DeleteResponse> {
    let (pid, exit) = lifecycle::delete(&call.agent, &request.id, &request.exec_id)?;
    let exited_at = exit.map(|exit| clock::timestamp(exit.at_unix_ns));
    Ok(DeleteResponse { pid, exit_status: exit.map_or(0, |exit| exit.status), exited_at })
}

fn state(call: &Call, request: &StateRequest) -> Reply<StateResponse> {
    call.agent.with(&request.id, |container| {
        let (is_paused, bundle) = (container.is_paused, container.bundle.to_string_lossy().into_owned());
        let process = container.process(&request.exec_id)?;
        let stream = |index: usize| if process.wanted[index] { "agent".to_string() } else { String::new() };
        Ok(StateResponse {
            id: request.id.clone(),
            bundle,
            pid: process.pid,
            status: status_of(process, is_paused),
            stdin: stream(0),
            stdout: stream(1),
            stderr: stream(2),
            terminal: process.terminal,
            exit_status: process.exit.map_or(0, |exit| exit.status),
            exited_at: process.exit.map(|exit| clock::timestamp(exit.at_unix_ns)),
            exec_id: request.exec_id.clone(),
        })
    })
}

fn status_of(process: &Process, is_paused: bool) -> i32 {
    match process.phase {
        Phase::Stopped => STOPPED,
        Phase::Running if is_paused => PAUSED,
        Phase::Running => RUNNING,
        Phase::Busy if process.pid == 0 => 0,
        Phase::Busy | Phase::Created => CREATED,
        Phase::Prepared => 0,
    }
}

fn pids(call: &Call, request: &PidsRequest) -> Reply<PidsResponse> {
    let pids = call.agent.with(&request.id, |container| Ok(container.cgroup.pids()))?;
    Ok(PidsResponse { processes: pids.into_iter().map(|pid| ProcessInfo { pid, info: None }).collect() })
}

/// Pauses or resumes; waits until all processes stand still, or go on.
fn freeze(call: &Call, id: &str, frozen: bool) -> Reply<Empty> {
    call.agent.with(id, |container| {
        if container.init().phase != Phase::Running {
            return Err(wrong_state(format!("container {id} does not run")));
        }
        if container.is_paused == frozen {
            return Err(wrong_state(format!("container {id} is {}paused", if frozen { "" } else { "not " })));
        }
        container.cgroup.freeze(frozen)
    })?;
    let cgroup = call.agent.with(id, |container| Ok(container.cgroup.clone()))?;
    cgroup.await_frozen(frozen, call.deadline)?;
    call.agent.with(id, |container| {
        container.is_paused = frozen;
        Ok(Empty {})
    })
}

fn kill(call: &Call, request: &KillRequest) -> Reply<Empty> {
    call.agent.with(&request.id, |container| {
        if request.all && request.exec_id != INIT {
            kill_tree(container, &request.exec_id, request.signal)?;
        } else if request.all {
            kill_all(container, request.signal)?;
        } else {
            lifecycle::signal(container.process(&request.exec_id)?, request.signal)?;
        }
        Ok(Empty {})
    })
}

fn kill_all(container: &Container, signal: u32) -> Reply<()> {
    if signal == libc::SIGKILL as u32 {
        container.cgroup.kill();
        return Ok(());
    }
    for pid in container.cgroup.pids() {
        lifecycle::signal_pid(pid, signal)?;
    }
    Ok(())
}

/// An exec and what it has started, which may start more while it is looked at. Looked for before the first of them ends:
/// children of one that has are anybody's.
fn kill_tree(container: &mut Container, exec_id: &str, signal: u32) -> Reply<()> {
    let process = container.process(exec_id)?;
    let mut known = BTreeSet::from([process.pid]);
    if !process.is_alive() {
        return lifecycle::signal(process, signal);
    }
    let mut told = BTreeSet::new();
    for _ in 0..MAX_ROUNDS {
        known = processes::offspring(&container.cgroup, &known);
        let new: Vec<u32> = known.difference(&told).copied().collect();
        if new.is_empty() {
            break;
        }
        new.iter().rev().try_for_each(|pid| lifecycle::signal_pid(*pid, signal))?;
        told.extend(new);
    }
    Ok(())
}

fn wait(call: &Call, request: &WaitRequest) -> Reply<WaitResponse> {
    let exit = call.agent.await_some(Some(&call.link), call.deadline, |state| {
        let process = state.container(&request.id).and_then(|container| container.process(&request.exec_id));
        match process {
            Ok(process) => process.exit.map(Ok),
            Err(fault) => Some(Err(fault)),
        }
    })??;
    Ok(WaitResponse { exit_status: exit.status, exited_at: Some(clock::timestamp(exit.at_unix_ns)) })
}

fn update(call: &Call, request: UpdateTaskRequest) -> Reply<Empty> {
    let Any { value, .. } = request.resources.unwrap_or_default();
    lifecycle::living(&call.agent, &request.id)?;
    crun::update(&call.agent, &request.id, &value)?;
    Ok(Empty {})
}

fn connect(call: &Call, request: &ConnectRequest) -> Reply<ConnectResponse> {
    let task_pid = call.agent.with(&request.id, |container| Ok(container.process(INIT)?.pid))?;
    Ok(ConnectResponse { shim_pid: std::process::id(), task_pid, version: env!("CARGO_PKG_VERSION").into() })
}

/// As a shim does: nothing while there are containers. The machine is ended by `Guest.Shutdown`.
fn shutdown(call: &Call, request: &ShutdownRequest) -> Reply<Empty> {
    let count = call.agent.state().containers.len();
    if count > 0 && !request.now {
        return Ok(Empty {});
    }
    crate::shutdown::begin(&call.agent, call.deadline, false)?;
    Ok(Empty {})
}
