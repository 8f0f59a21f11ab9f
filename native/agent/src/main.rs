//! drupe-agent: PID 1 of a guest, or a service of one. It runs containers as the host asks, which calls it over ttrpc:
//! containerd's Task API and the guest service (src/drupe/rpc/guest/guest.proto).

#![deny(unsafe_code)]

mod agent;
mod bundle;
mod cgroup;
mod channel;
mod children;
mod cidr;
mod clock;
mod container;
mod copy;
mod crun;
mod devices;
mod diag;
mod dial;
mod events;
mod fault;
mod freeze;
mod guest;
mod init;
mod inside;
mod lifecycle;
mod link;
mod links;
mod modules;
mod mounts;
mod netlink;
mod online;
mod oom;
mod pidns;
mod pool;
mod processes;
mod proto;
mod renew;
mod rootfs;
mod routes;
mod server;
mod service;
mod setup;
mod shutdown;
mod stats;
mod streams;
mod sync;
mod task;
mod template;
mod threads;
mod ttrpc;
mod wire;

use agent::{Agent, Place};
use channel::Channel;
use drupe_sys::process;
use fault::{During, Reply};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

const USAGE: &str = "usage: drupe-agent --service [--machine] [--channel CHANNEL] [--run-dir DIR] | --version
--machine: the machine is there for the pod alone, and is powered off with it
as PID 1 it takes `drupe.channel=CHANNEL` from the kernel's command line
channels: serial[:NAME] vsock[:PORT] tty:PATH unix:PATH";

struct Options {
    channel: String,
    run_dir: String,
    machine: bool,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let is_modprobe = words.first().is_some_and(|name| name.ends_with("/modprobe"));
    let result = match words.get(1).map(String::as_str) {
        // As the kernel calls it: /sbin/modprobe -q -- fs-overlay
        _ if is_modprobe => return load(words.last().map_or("", String::as_str)),
        Some("--version") => {
            println!("drupe-agent {} (protocol {})", env!("CARGO_PKG_VERSION"), guest::PROTOCOL);
            return ExitCode::SUCCESS;
        }
        Some(pidns::WORD) => pidns::hold(),
        Some("--service") => parse(&words[2..]).and_then(|options| serve(&options)),
        _ if std::process::id() == 1 => be_init(),
        _ => Err(fault::invalid("as what? I am not PID 1")),
    };
    if let Err(fault) = result {
        eprintln!("drupe-agent: {}\n{USAGE}", fault.words);
    }
    if std::process::id() == 1 {
        shutdown::power_off(false); // rather than a panic of the kernel
    }
    ExitCode::from(2)
}

fn load(alias: &str) -> ExitCode {
    modules::load_for(alias);
    ExitCode::SUCCESS
}

fn parse(words: &[String]) -> Reply<Options> {
    let mut options = Options { channel: "serial".into(), run_dir: "/run/drupe".into(), machine: false };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--machine" {
            options.machine = true;
            continue;
        }
        let value = words.next().ok_or_else(|| fault::invalid(format!("{word} needs a value")))?;
        match word.as_str() {
            "--channel" => options.channel = value.clone(),
            "--run-dir" => options.run_dir = value.clone(),
            other => return Err(fault::invalid(format!("unknown argument {other}"))),
        }
    }
    Ok(options)
}

fn be_init() -> Reply<()> {
    init::begin();
    let channel = init::command_line("drupe.channel").unwrap_or_else(|| "serial".into());
    serve(&Options { channel, run_dir: "/run/drupe".into(), machine: true })
}

/// Until the channel fails.
fn serve(options: &Options) -> Reply<()> {
    drupe_sys::machine::share_arena();
    // Of every thread: only the reaper takes it.
    process::set_blocked_signals(1 << (libc::SIGCHLD - 1)).during(|| "cannot block SIGCHLD")?;
    process::set_child_subreaper().during(|| "cannot become a reaper of orphans")?;
    let run = Path::new(&options.run_dir).to_path_buf();
    std::fs::create_dir_all(&run).during(|| format!("cannot make {}", run.display()))?;
    let channel = Channel::parse(&options.channel)?;
    if !matches!(channel, Channel::Unix(_)) {
        threads::come_first();
    }
    if options.machine {
        service::settle()?;
    }
    let agent = Arc::new(Agent::new(Place { run, owns_machine: options.machine }));
    children::start_reaper(&agent).during(|| "cannot reap")?;
    devices::start_watch(&agent)?;
    oom::start_watch(&agent).during(|| "cannot watch for lack of memory")?;
    channel.serve(&agent)
}
