//! What makes a kernel that waits a pod's: one packet on a socket that whoever started it holds the other end of.

use std::io;
use std::os::fd::OwnedFd;

use drupe_appkernel_hostsys::zygote::MAX_CGROUPS;
use drupe_packets::{Failure, Fds, Fields, Outcome, MAX_PACKET};
use drupe_sys::socket;
use serde_json::json;

const NETWORK: &str = "netns";

/// The pod, as far as its kernel has to know it before it is confined.
#[derive(Default)]
pub struct Claim {
    pub hostname: String,
    /// Limits of its cgroup; 0: none.
    pub memory_bytes: u64,
    pub processors: u32,
    pub netns: Option<OwnedFd>,
    /// Files of its cgroups, to be joined by whoever writes to them.
    pub cgroups: Vec<OwnedFd>,
}

impl Claim {
    /// Wait for it. None: whoever started this kernel has gone, or wants it no more.
    pub fn wait(socket: &OwnedFd) -> Result<Option<Claim>, String> {
        let mut buffer = vec![0; MAX_PACKET];
        let failed = |error: io::Error| format!("the claim: {error}");
        socket::wait_readable(socket).map_err(failed)?;
        let received = socket::receive(socket, &mut buffer).map_err(failed)?;
        match received.length {
            0 => Ok(None),
            length => Claim::parse(&buffer[..length], received.fds).map(Some).map_err(|failure| failure.message),
        }
    }

    fn parse(packet: &[u8], fds: Vec<OwnedFd>) -> Outcome<Claim> {
        let mut fields = Fields::parse(packet)?;
        let mut fds = Fds::named(fields.need("fds")?, fds)?;
        let claim = Claim {
            hostname: fields.need("hostname")?,
            memory_bytes: fields.need("memory_bytes")?,
            processors: fields.need("processors")?,
            netns: Some(fds.take(NETWORK).ok_or_else(|| Failure::new("EBADF", "a claim has a network namespace"))?),
            cgroups: fds.0.into_iter().map(|(_, fd)| fd).collect(),
        };
        fields.finish()?;
        match claim.cgroups.len() <= MAX_CGROUPS {
            true => Ok(claim),
            false => Err(Failure::invalid(format!("more than {MAX_CGROUPS} cgroups"))),
        }
    }
}

/// The one answer to a claim; nobody may be there to hear it.
pub fn answer(socket: &OwnedFd, done: &Result<(), String>) {
    let told = match done {
        Ok(()) => json!({"ok": {}}),
        Err(message) => json!({"error": Failure::new("EHELPER", message).to_json()}),
    };
    let _gone = socket::send(socket, told.to_string().as_bytes(), &[]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_claim_and_what_is_none() {
        let (ours, theirs) = socket::pair().unwrap();
        let text = br#"{"fds": ["one", "netns", "two"], "hostname": "h", "memory_bytes": 5, "processors": 1}"#;
        socket::send(&ours, text, &[null(), null(), null()]).unwrap();
        let claim = Claim::wait(&theirs).unwrap().unwrap();
        assert_eq!((claim.hostname.as_str(), claim.memory_bytes, claim.processors), ("h", 5, 1));
        assert!(claim.netns.is_some() && claim.cgroups.len() == 2);
        for (bad, fds) in [(&text[..], 1), (&b"{}"[..], 0), (&b"no"[..], 0)] {
            socket::send(&ours, bad, &(0..fds).map(|_| null()).collect::<Vec<_>>()).unwrap();
            assert!(Claim::wait(&theirs).is_err());
        }
        drop(ours);
        assert!(Claim::wait(&theirs).unwrap().is_none());
    }
}
