//! The pod's part of a guest: names, files, sysctls, file systems, clock and entropy.

use crate::agent::Agent;
use crate::fault::{invalid, wrong_state, During, Reply};
use crate::proto::guest::{GuestMount, SetupRequest};
use crate::proto::wellknown::Empty;
use crate::server::Call;
use crate::{clock, links, mounts, pidns, routes, template};
use std::collections::BTreeMap;
use std::path::Path;

pub fn set_up(call: &Call, request: &SetupRequest) -> Reply<Empty> {
    let agent = &call.agent;
    if agent.state().is_set_up {
        return Err(wrong_state("the guest is set up already"));
    }
    clock::set(request.clock_unix_ns)?;
    add_entropy(&request.entropy)?;
    name(agent, request)?;
    set_sysctls(&request.sysctls)?;
    if request.share_pid && agent.state().pod_pid.is_none() {
        agent.state().pod_pid = Some(pidns::start(agent)?);
    }
    mount_shm(call, request.shm_size_bytes)?;
    for mount in &request.mounts {
        mounts::mount(agent, mount, &call.patience())?;
    }
    if !request.interfaces.is_empty() || !request.routes.is_empty() {
        links::set(agent, &request.interfaces, &call.patience())?;
        routes::set(&request.routes)?;
    }
    template::hear(agent)?;
    agent.change(|state| state.is_set_up = true);
    Ok(Empty {})
}

fn name(agent: &Agent, request: &SetupRequest) -> Reply<()> {
    set_hostname(&request.hostname)?;
    if !request.domainname.is_empty() {
        rustix::system::setdomainname(request.domainname.as_bytes()).during(|| "cannot set the domain name")?;
    }
    put_machine_id(agent, &request.machine_id)?;
    put_file(agent, "hostname", format!("{}\n", request.hostname).as_bytes())?;
    put_file(agent, "resolv.conf", &request.resolv_conf)?;
    put_file(agent, "hosts", &request.hosts)
}

/// Empty: leave it.
pub fn set_hostname(name: &str) -> Reply<()> {
    if name.is_empty() {
        return Ok(());
    }
    rustix::system::sethostname(name.as_bytes()).during(|| format!("cannot set the host name {name:?}"))
}

/// Of the guest, whose /etc/machine-id is a link to it, and for the containers that bind it.
pub fn put_machine_id(agent: &Agent, id: &str) -> Reply<()> {
    if id.is_empty() {
        return Ok(());
    }
    put_file(agent, "machine-id", format!("{id}\n").as_bytes())
}

/// In place: containers have the file itself bound.
pub fn put_file(agent: &Agent, name: &str, content: &[u8]) -> Reply<()> {
    let directory = agent.place.run.join("etc");
    std::fs::create_dir_all(&directory).during(|| format!("cannot make {}", directory.display()))?;
    std::fs::write(directory.join(name), content).during(|| format!("cannot write {name}"))
}

pub fn add_entropy(data: &[u8]) -> Reply<Empty> {
    if !data.is_empty() {
        drupe_sys::machine::add_entropy(data).during(|| "cannot add entropy")?;
    }
    Ok(Empty {})
}

/// Names as sysctl(8) has them: net.ipv4.ip_forward.
pub fn set_sysctls(sysctls: &BTreeMap<String, String>) -> Reply<Empty> {
    for (name, value) in sysctls {
        // A dot inside of a name (of an interface) is written as a slash.
        let path = name.replace(['.', '/'], "\0").replace('\0', "/");
        if path.split('/').any(|part| part.is_empty() || part == "..") {
            return Err(invalid(format!("{name:?} is no sysctl")));
        }
        let path = Path::new("/proc/sys").join(path);
        std::fs::write(path, value).during(|| format!("cannot set sysctl {name}={value}"))?;
    }
    Ok(Empty {})
}

fn mount_shm(call: &Call, size_bytes: u64) -> Reply<()> {
    if size_bytes == 0 {
        return Ok(());
    }
    let target = call.agent.place.run.join("shm").to_string_lossy().into_owned();
    let options = ["nosuid", "nodev", "noexec", "mode=1777"].map(String::from).into_iter();
    let options = options.chain([format!("size={size_bytes}")]).collect();
    let mount = GuestMount { r#type: "tmpfs".into(), source: "shm".into(), target, options, device: None };
    mounts::mount(&call.agent, &mount, &call.patience())
}
