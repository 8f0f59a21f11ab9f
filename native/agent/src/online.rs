//! Processors and memory that came, or are to go.

use crate::agent::Agent;
use crate::devices::{base_name, entries, read};
use crate::fault::{fault, invalid, Code, During, Reply};
use crate::proto::guest::{SetOnlineRequest, SetOnlineResponse};
use crate::streams::Patience;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const PROCESSORS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";

/// New memory is used as it comes, in zones that let it go again where there is enough for the kernel itself.
pub fn set_policy() -> io::Result<()> {
    // Of a kernel that has no hotplug of memory there is nothing to say.
    if !Path::new(MEMORY).join("auto_online_blocks").exists() {
        return Ok(());
    }
    fs::write("/sys/module/memory_hotplug/parameters/online_policy", "auto-movable")?;
    fs::write(Path::new(MEMORY).join("auto_online_blocks"), "online")
}

/// Until that many processors and that much memory are in use; 0: leave them. Answers what is.
pub fn set(agent: &Agent, request: &SetOnlineRequest, patience: &Patience) -> Reply<SetOnlineResponse> {
    loop {
        let now = look();
        let enough = |wanted: u64, have: u64| wanted == 0 || wanted == have;
        let is_done = enough(request.processors.into(), now.processors.into())
            && (request.memory_bytes == 0 || is_near(request.memory_bytes, now.memory_bytes));
        if is_done {
            return Ok(now);
        }
        set_processors(request.processors)?;
        set_memory(request.memory_bytes)?;
        if look() == now {
            let news = agent.await_news(Some(patience.link), patience.deadline);
            news.map_err(|one| if one.code == Code::DeadlineExceeded { late(request, &now) } else { one })?;
        }
    }
}

fn late(request: &SetOnlineRequest, now: &SetOnlineResponse) -> crate::fault::Fault {
    let words = format!(
        "{} processors and {} bytes of memory are in use, not {} and {}",
        now.processors, now.memory_bytes, request.processors, request.memory_bytes
    );
    fault(Code::DeadlineExceeded, words)
}

/// What the blocks hold, to the block: a part of one may be a hole.
fn is_near(wanted: u64, have: u64) -> bool {
    wanted.abs_diff(have) < block_bytes().max(1)
}

fn look() -> SetOnlineResponse {
    let blocks = blocks().iter().filter(|block| is_online(block)).count() as u64;
    SetOnlineResponse { processors: online_processors().len() as u32, memory_bytes: blocks * block_bytes() }
}

/// Those with a switch; the first may have none, as it is always there.
fn processors() -> Vec<(u32, PathBuf)> {
    let number = |path: &PathBuf| base_name(path).strip_prefix("cpu")?.parse().ok();
    let mut found: Vec<(u32, PathBuf)> =
        entries(PROCESSORS).into_iter().filter_map(|path| Some((number(&path)?, path))).collect();
    found.sort();
    found
}

fn online_processors() -> Vec<(u32, PathBuf)> {
    processors().into_iter().filter(|(_, path)| is_online(path)).collect()
}

fn is_online(path: &Path) -> bool {
    read(&path.join("online")).is_none_or(|text| text == "1")
}

/// The lowest numbers are in use, the others not.
fn set_processors(wanted: u32) -> Reply<()> {
    if wanted == 0 {
        return Ok(());
    }
    let have = online_processors();
    let off = processors().into_iter().filter(|(_, path)| !is_online(path));
    let more = off.take((wanted as usize).saturating_sub(have.len())).map(|one| (one, "1"));
    let fewer = have.iter().skip(wanted as usize).cloned().map(|one| (one, "0"));
    for ((number, path), value) in more.chain(fewer).collect::<Vec<_>>() {
        if number == 0 && value == "0" {
            return Err(invalid("the first processor stays"));
        }
        fs::write(path.join("online"), value).during(|| format!("cannot switch processor {number}"))?;
    }
    Ok(())
}

fn blocks() -> Vec<PathBuf> {
    entries(MEMORY).into_iter().filter(|path| path.join("phys_index").exists()).collect()
}

fn block_bytes() -> u64 {
    let text = read(&Path::new(MEMORY).join("block_size_bytes")).unwrap_or_default();
    u64::from_str_radix(&text, 16).unwrap_or(0)
}

/// Brings blocks into use. Those that are to go are taken out of use by who removes them: a virtio-mem device or the
/// firmware, which know which they are.
fn set_memory(wanted_bytes: u64) -> Reply<()> {
    let off: Vec<PathBuf> = blocks().into_iter().filter(|block| !is_online(block)).collect();
    let have = (blocks().len() - off.len()) as u64 * block_bytes();
    for block in off.iter().take((wanted_bytes.saturating_sub(have) / block_bytes().max(1)) as usize) {
        fs::write(block.join("online"), "1").during(|| format!("cannot use {}", base_name(block)))?;
    }
    Ok(())
}
