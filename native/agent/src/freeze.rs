//! All containers standing still at once, above what holds each of them.

use crate::cgroup::Cgroup;
use crate::fault::Reply;
use std::time::Instant;

/// Freezes or thaws all, and waits until it is so. Without a container there is nothing to do.
pub fn set(frozen: bool, deadline: Option<Instant>) -> Reply<()> {
    let all = Cgroup::all();
    if !all.file("cgroup.freeze").exists() {
        return Ok(());
    }
    all.freeze(frozen)?;
    all.await_frozen(frozen, deadline)
}
