//! The end: all containers, then what is mounted, then the power.

use crate::agent::Agent;
use crate::children;
use crate::fault::Reply;
use crate::mounts;
use rustix::system::{reboot, RebootCommand};
use std::os::fd::AsFd;
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
        .run({
            let agent = agent.clone();
            move || {
                std::thread::sleep(ANSWER);
                if std::process::id() == 1 || !ask_init(&agent, restart) {
                    power_off(restart);
                }
            }
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

/// Has the first process end the machine, with all else that runs in it. Whether there is a way to ask.
fn ask_init(agent: &Agent, restart: bool) -> bool {
    let word = if restart { "reboot" } else { "poweroff" };
    let Ok(null) = std::fs::File::open("/dev/null") else { return false };
    let started = children::spawn(agent, &[word.into()], [null.as_fd(); 3]);
    started.is_ok_and(|pid| children::wait(agent, pid).status == 0)
}

/// Ends the machine.
pub fn power_off(restart: bool) {
    let command = if restart { RebootCommand::Restart } else { RebootCommand::PowerOff };
    if let Err(error) = reboot(command) {
        eprintln!("drupe-agent: cannot power off: {error}");
    }
}
