//! A bundle: config.json fitted to this guest, and its root file system.

use crate::agent::Agent;
use crate::cgroup::{self, Cgroup};
use crate::container::{Container, Process, INIT};
use crate::fault::{fault, invalid, Code, During, Reply};
use crate::proto::guest::{PutBundleRequest, PutBundleResponse};
use crate::{lifecycle, rootfs};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What containers of a pod share: the guest's own are the pod's.
const POD_WIDE: [&str; 3] = ["network", "ipc", "uts"];

pub fn put(agent: &Agent, request: &PutBundleRequest, patience: &crate::streams::Patience) -> Reply<PutBundleResponse> {
    lifecycle::check_id(&request.id)?;
    let mut config: Value =
        serde_json::from_slice(&request.config_json).map_err(|error| invalid(format!("config.json: {error}")))?;
    let pod_pid = {
        let state = agent.state();
        if state.containers.contains_key(&request.id) {
            return Err(fault(Code::AlreadyExists, format!("there is a container {} already", request.id)));
        }
        state.pod_pid
    };
    let bundle = agent.place.run.join("bundles").join(&request.id);
    std::fs::create_dir_all(&bundle).during(|| format!("cannot make {}", bundle.display()))?;
    let result = rootfs::put(agent, &bundle, &mut config, request, patience).and_then(|rootfs| {
        fit(&mut config, &request.id, pod_pid);
        write(&bundle, &config)?;
        Ok(rootfs)
    });
    let rootfs = result.inspect_err(|_| drop(remove(&bundle)))?;
    lifecycle::add(agent, &request.id, described(&request.id, bundle.clone()));
    let text = |path: &Path| path.to_string_lossy().into_owned();
    Ok(PutBundleResponse { bundle: text(&bundle), rootfs: text(&rootfs) })
}

fn described(id: &str, bundle: PathBuf) -> Container {
    let processes = BTreeMap::from([(INIT.to_string(), Process::new(false, [false; 3], Vec::new()))]);
    Container { bundle, cgroup: Cgroup::of(id), processes, is_paused: false, oom_kills: 0 }
}

/// The guest decides over cgroups and what the pod shares, whatever a host that thought of itself wrote.
fn fit(config: &mut Value, id: &str, pod_pid: Option<u32>) {
    if !config["linux"].is_object() {
        config["linux"] = json!({});
    }
    let linux = &mut config["linux"];
    linux["cgroupsPath"] = json!(cgroup::path_of(id));
    let given = linux["namespaces"].as_array().cloned().unwrap_or_default();
    let mut kept: Vec<Value> =
        given.into_iter().filter(|one| !POD_WIDE.iter().any(|kind| one["type"] == *kind)).collect();
    if let Some(pid) = pod_pid {
        kept.retain(|one| one["type"] != "pid");
        kept.push(json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")}));
    }
    linux["namespaces"] = json!(kept);
}

fn write(bundle: &Path, config: &Value) -> Reply<()> {
    std::fs::write(bundle.join("config.json"), config.to_string()).during(|| "cannot write config.json")
}

/// crun goes by config.json, the host by its request.
pub fn set_terminal(bundle: &Path, terminal: bool) -> Reply<()> {
    let text = std::fs::read(bundle.join("config.json")).during(|| "cannot read config.json")?;
    let mut config: Value = serde_json::from_slice(&text).map_err(|error| invalid(format!("config.json: {error}")))?;
    if config["process"]["terminal"].as_bool().unwrap_or(false) == terminal {
        return Ok(());
    }
    config["process"]["terminal"] = json!(terminal);
    write(bundle, &config)
}

/// Unmounts and removes a bundle; one that is half made or gone, too.
pub fn remove(bundle: &Path) -> Reply<()> {
    rootfs::remove(bundle)?;
    match std::fs::remove_dir_all(bundle) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).during(|| format!("cannot remove {}", bundle.display()))
        }
        _ => Ok(()),
    }
}
