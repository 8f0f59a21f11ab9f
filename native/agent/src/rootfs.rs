//! A container's root: what the host gave, stacked, and an upper of the guest's own over it.

use crate::agent::Agent;
use crate::fault::{invalid, During, Reply};
use crate::mounts;
use crate::proto::guest::{GuestMount, PutBundleRequest};
use crate::streams::Patience;
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

/// Mounts below `bundle` what the request says, and has config.json name it: the root.
pub fn put(
    agent: &Agent,
    bundle: &Path,
    config: &mut Value,
    request: &PutBundleRequest,
    patience: &Patience,
) -> Reply<PathBuf> {
    let root = bundle.join("rootfs");
    if let ([only], false) = (request.rootfs.as_slice(), request.writable_upper) {
        mount_at(agent, only, &root, patience)?;
    } else if request.rootfs.is_empty() && !request.writable_upper {
        let given = config["root"]["path"].as_str().filter(|path| path.starts_with('/'));
        return given
            .map(PathBuf::from)
            .ok_or_else(|| invalid("no rootfs, and root.path of config.json is not absolute"));
    } else {
        let layers = layers(agent, bundle, config, request, patience)?;
        overlay(agent, bundle, &layers, request, &root, patience)?;
    }
    config["root"]["path"] = json!(root.to_string_lossy());
    Ok(root)
}

/// Directories, the lowest first.
fn layers(
    agent: &Agent,
    bundle: &Path,
    config: &Value,
    request: &PutBundleRequest,
    patience: &Patience,
) -> Reply<Vec<PathBuf>> {
    if request.rootfs.is_empty() {
        let given = config["root"]["path"].as_str().filter(|path| path.starts_with('/'));
        return Ok(vec![given.ok_or_else(|| invalid("root.path of config.json is not absolute"))?.into()]);
    }
    let mut layers = Vec::new();
    for (number, mount) in request.rootfs.iter().enumerate() {
        let target = bundle.join(format!("lower{number}"));
        mount_at(agent, mount, &target, patience)?;
        layers.push(target);
    }
    Ok(layers)
}

fn overlay(
    agent: &Agent,
    bundle: &Path,
    layers: &[PathBuf],
    request: &PutBundleRequest,
    root: &Path,
    patience: &Patience,
) -> Reply<()> {
    let names: Vec<_> = layers.iter().rev().map(|layer| layer.to_string_lossy()).collect();
    let mut data = format!("lowerdir={}", names.join(":"));
    if request.writable_upper {
        let upper = bundle.join("upper");
        mount_at(agent, &upper_mount(request), &upper, patience)?;
        for name in ["up", "work"] {
            std::fs::create_dir_all(upper.join(name)).during(|| format!("cannot make {name} of the upper"))?;
        }
        let upper = upper.to_string_lossy();
        data += &format!(",upperdir={upper}/up,workdir={upper}/work");
    }
    std::fs::create_dir_all(root).during(|| format!("cannot make {}", root.display()))?;
    drupe_sys::mount::mount("overlay", root, "overlay", 0, &data).during(|| format!("cannot mount an overlay ({data})"))
}

/// Where writes go: the given disk, or memory.
fn upper_mount(request: &PutBundleRequest) -> GuestMount {
    request.upper.clone().unwrap_or_else(|| {
        let size = request.upper_size_bytes;
        let options = if size == 0 { vec!["mode=755".into()] } else { vec!["mode=755".into(), format!("size={size}")] };
        GuestMount { r#type: "tmpfs".into(), source: "upper".into(), options, ..GuestMount::default() }
    })
}

fn mount_at(agent: &Agent, mount: &GuestMount, target: &Path, patience: &Patience) -> Reply<()> {
    let target = target.to_string_lossy().into_owned();
    mounts::mount(agent, &GuestMount { target, ..mount.clone() }, patience)
}

/// Undoes `put`, whatever of it was done.
pub fn remove(bundle: &Path) -> Reply<()> {
    mounts::unmount_below(bundle)
}
