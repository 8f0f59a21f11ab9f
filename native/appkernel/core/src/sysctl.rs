//! Settings of the kernel that a pod may be given (sysctl(8)): those of its IPC, its names, and its network, which is the
//! host's namespace: there the values are set by whoever made it, and only shown here.

use drupe_appkernel_abi::{Errno, Result};

use crate::kernel::Kernel;

/// Limits of System V IPC, as /proc/sys/kernel has them.
#[derive(Clone, Copy, Debug)]
pub struct IpcLimits {
    pub segment_bytes: u64,
    pub segment_pages: u64,
    pub segments: u64,
    pub message_bytes: u64,
    pub queue_bytes: u64,
    pub queues: u64,
    /// In a set; in all; operations of one call; sets.
    pub semaphores: [u64; 4],
}

const UNLIMITED: u64 = u64::MAX - (1 << 24);
/// What the kernel keeps of each sort, whatever is set.
const MOST: u64 = 4096;

impl Default for IpcLimits {
    fn default() -> Self {
        IpcLimits {
            segment_bytes: UNLIMITED,
            segment_pages: UNLIMITED,
            segments: MOST,
            message_bytes: 8192,
            queue_bytes: 16_384,
            queues: 32_000,
            semaphores: [32_000, 1_024_000_000, 500, 32_000],
        }
    }
}

/// Longest message that fits into the kernel's memory at once.
const MESSAGE_MOST: u64 = 1 << 20;

fn one(numbers: &[u64]) -> Result<u64> {
    match numbers {
        [number] => Ok(*number),
        _ => Err(Errno::INVAL),
    }
}

impl Kernel {
    /// Set one, before what is to see it starts. ENOENT: there is none of that name; EINVAL: the value is none for it.
    pub fn set_sysctl(&mut self, name: &str, value: &str) -> Result<()> {
        let numbers = value.split_ascii_whitespace().map(str::parse).collect::<std::result::Result<Vec<u64>, _>>();
        let numbers = numbers.map_err(|_| Errno::INVAL);
        let ipc = &mut self.ipc;
        match name {
            "kernel.shmmax" => ipc.segment_bytes = one(&numbers?)?,
            "kernel.shmall" => ipc.segment_pages = one(&numbers?)?,
            "kernel.shmmni" => ipc.segments = one(&numbers?)?,
            "kernel.msgmax" => ipc.message_bytes = one(&numbers?).and_then(|n| most(n, MESSAGE_MOST))?,
            "kernel.msgmnb" => ipc.queue_bytes = one(&numbers?).and_then(|n| most(n, MESSAGE_MOST))?,
            "kernel.msgmni" => ipc.queues = one(&numbers?)?,
            "kernel.sem" => ipc.semaphores = numbers?.try_into().map_err(|_| Errno::INVAL)?,
            "kernel.shm_rmid_forced" => drop(one(&numbers?).and_then(|n| most(n, 0))?),
            "kernel.domainname" if value.len() <= 64 => self.domainname = value.as_bytes().to_vec(),
            "net.ipv4.ip_unprivileged_port_start" => {
                let port = one(&numbers?).and_then(|port| u16::try_from(port).map_err(|_| Errno::INVAL))?;
                drupe_appkernel_vfs::socket::set_first_unprivileged_port(port);
            }
            _ if name.starts_with("net.") => {}
            "fs.mqueue.queues_max" => self.message_queues.queues_max = one(&numbers?)?,
            "fs.mqueue.msg_max" => self.message_queues.most.messages = one(&numbers?)?,
            "fs.mqueue.msgsize_max" => self.message_queues.most.message_bytes = one(&numbers?)?,
            "fs.mqueue.msg_default" => self.message_queues.usual.messages = one(&numbers?)?,
            "fs.mqueue.msgsize_default" => self.message_queues.usual.message_bytes = one(&numbers?)?,
            _ => return Err(Errno::NOENT),
        }
        let shown = match name {
            "kernel.domainname" => value.into(),
            _ => value.split_whitespace().collect::<Vec<_>>().join("\t"),
        };
        self.census.show_setting(&name.replace('.', "/"), &shown);
        Ok(())
    }
}

fn most(number: u64, most: u64) -> Result<u64> {
    Some(number).filter(|number| *number <= most).ok_or(Errno::INVAL)
}
