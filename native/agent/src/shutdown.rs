//! The end: all containers, then what is mounted, then the power.

use crate::agent::Agent;
use crate::fault::Reply;
use crate::mounts;
use rustix::system::{reboot, RebootCommand};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long containers have to end when SIGTERM asked them, without another word of the host.
const DEFAULT_LIMIT: Duration = Duration::from_secs(10);
/// For the answer to get out before the power goes.
const ANSWER: Duration = Duration::from_millis(50);

/// Ends all containers, flushes and unmounts; the power goes a moment later, where the machine is ours.
pub fn begin(agent: &Arc<Agent>, deadline: Option<Instant>, restart: bool) -> Reply<()> {
    agent.change(|state| state.is_ending = true);
    end_containers(agent, deadline.unwrap_or_else(|| Instant::now() + DEFAULT_LIMIT));
    rustix::fs::sync();
    if !agent.place.owns_machine {
        return Ok(());
    }
    for top in ["/run/drupe", "/mnt"] {
        if let Err(fault) = mounts::unmount_below(Path::new(top)) {
            eprintln!("drupe-agent: {}", fault.words);
        }
    }
    rustix::fs::sync();
    agent
        .pool
        .run(move || {
            std::thread::sleep(ANSWER);
            power_off(restart);
        })
        .ok();
    Ok(())
}

fn end_containers(agent: &Agent, deadline: Instant) {
    for container in agent.state().containers.values() {
        for pid in container.cgroup.pids() {
            let _ = drupe_sys::process::kill(pid as i32, libc::SIGTERM);
        }
    }
    let all_ended = |limit| {
        agent.await_some(None, Some(limit), |state| {
            let mut inits = state.containers.values_mut().map(|container| container.init().is_alive());
            (!inits.any(|alive| alive)).then_some(())
        })
    };
    if all_ended(deadline).is_err() {
        agent.state().containers.values().for_each(|container| container.cgroup.kill());
        let _ = all_ended(Instant::now() + Duration::from_secs(2));
    }
}

/// Ends the machine.
pub fn power_off(restart: bool) {
    let command = if restart { RebootCommand::Restart } else { RebootCommand::PowerOff };
    if let Err(error) = reboot(command) {
        eprintln!("drupe-agent: cannot power off: {error}");
    }
}
