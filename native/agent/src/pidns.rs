//! One PID namespace for all containers of a pod: it lives as long as its first process, which is this program again.

use crate::agent::Agent;
use crate::children;
use crate::fault::{fault, Code, During, Reply};
use drupe_sys::process;
use std::os::fd::AsFd;
use std::sync::Arc;

pub const WORD: &str = "--hold";

/// The pid of the namespace's first process.
pub fn start(agent: &Arc<Agent>) -> Reply<u32> {
    let agent = agent.clone();
    // A thread of its own: what is unshared is where its children will be.
    let work = move || {
        drupe_sys::mount::unshare(libc::CLONE_NEWPID).during(|| "cannot make a PID namespace")?;
        let program = std::env::current_exe().during(|| "cannot find this program")?;
        let argv = [program.to_string_lossy().into_owned(), WORD.to_string()];
        let null = std::fs::File::open("/dev/null").during(|| "cannot open /dev/null")?;
        let stdio = [null.as_fd(); 3];
        children::spawn(&agent, &argv, stdio).during(|| "cannot start the first process of the pod")
    };
    let pid = std::thread::spawn(work)
        .join()
        .map_err(|_| fault(Code::Internal, "the thread for the pod's processes failed"))?;
    Ok(pid? as u32)
}

/// What that process does: it reaps orphans, for ever.
pub fn hold() -> Reply<()> {
    process::set_blocked_signals(1 << (libc::SIGCHLD - 1)).during(|| "cannot block SIGCHLD")?;
    let signals = process::signal_fd(&[libc::SIGCHLD]).during(|| "cannot take signals")?;
    loop {
        children::wait_readable(&signals);
        while process::next_signal(&signals).is_some() {}
        while process::reap().is_some() {}
    }
}
