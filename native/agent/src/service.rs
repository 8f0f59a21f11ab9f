//! The agent as a service of a full image, whose first process is another program: systemd, or any init.

use crate::cgroup::TOP;
use crate::fault::{During, Reply};
use crate::online;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The cgroup that was delegated to the service, below `TOP`; empty for the first process, which has them all.
static OWN: OnceLock<String> = OnceLock::new();

pub fn own_cgroup() -> &'static str {
    OWN.get().map_or("", String::as_str)
}

/// What the first process does in `init`, as far as another one has not done it. Containers get their cgroups below the
/// service's own, so that its manager knows of them and ends them with it.
pub fn settle() -> Reply<()> {
    if std::process::id() == 1 {
        return Ok(());
    }
    online::set_policy().during(|| "cannot choose where memory goes")?;
    let text = fs::read_to_string("/proc/self/cgroup").during(|| "cannot read /proc/self/cgroup")?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim_end_matches('/').to_string();
    let home = PathBuf::from(format!("{TOP}{own}"));
    if !own.is_empty() {
        // A cgroup that hands controllers on has no processes itself (cgroup-v2, "No Internal Process Constraint").
        let leaf = home.join("agent");
        fs::create_dir_all(&leaf).during(|| format!("cannot make {}: is the cgroup delegated?", leaf.display()))?;
        fs::write(leaf.join("cgroup.procs"), "0").during(|| format!("cannot enter {}", leaf.display()))?;
    }
    hand_on(&home).during(|| format!("cannot hand controllers on in {}", home.display()))?;
    let _ = OWN.set(own);
    Ok(())
}

/// Lets the cgroups below have all controllers of this one.
pub fn hand_on(cgroup: &Path) -> std::io::Result<()> {
    let there = fs::read_to_string(cgroup.join("cgroup.controllers"))?;
    let words: Vec<String> = there.split_whitespace().map(|name| format!("+{name}")).collect();
    fs::write(cgroup.join("cgroup.subtree_control"), words.join(" "))
}
