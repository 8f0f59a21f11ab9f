//! A pair of terminals: random typing and writing under random settings, and what both ends read.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use drupe_appkernel_vfs::devices::Terminals;
use drupe_appkernel_vfs::tty::{Devpts, Jobs, Master, Termios};
use drupe_appkernel_vfs::{Context, Credentials, File, OpenFlags, Timestamp};
use rustix::fs::OFlags;
use rustix::pty::{grantpt, openpt, ptsname, unlockpt, OpenptFlags};
use rustix::termios::{tcgetattr, tcsetattr, InputModes, LocalModes, OptionalActions, OutputModes};

use crate::world::Random;

const TCGETS: u32 = 0x5401;
const TCSETS: u32 = 0x5402;
const TIOCSPTLCK: u32 = 0x4004_5431;

/// What a side reads: the slave's reads one by one, as lines are, and the master's bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    slave: Vec<Vec<u8>>,
    master: Vec<u8>,
}

struct NoJobs;

impl Jobs for NoJobs {
    fn own_group(&self) -> u32 {
        1
    }

    fn session_of(&self, _: u32) -> Option<u32> {
        None
    }

    fn signal(&self, _: u32, _: i32) {}

    fn would_stop(&self, _: i32) -> bool {
        false
    }
}

struct Ours {
    credentials: Credentials,
    master: Arc<dyn File>,
    slave: Arc<dyn File>,
}

fn context(credentials: &Credentials) -> Context<'_> {
    Context { credentials, now: Timestamp::ZERO, pid: 5, session: 1 }
}

impl Ours {
    fn new() -> Self {
        let credentials = Credentials::root();
        let master = Devpts::new(Arc::new(NoJobs)).new_master(&context(&credentials)).unwrap();
        let mut unlocked = 0_i32.to_ne_bytes().to_vec();
        master.ioctl(&context(&credentials), TIOCSPTLCK, 0, &mut unlocked).unwrap();
        let peer = master.as_any().downcast_ref::<Master>().unwrap();
        let slave = peer.open_peer(&context(&credentials), OpenFlags(OpenFlags::RDWR)).unwrap();
        Self { credentials, master, slave }
    }

    fn context(&self) -> Context<'_> {
        context(&self.credentials)
    }

    fn set(&self, [input, output, local]: [u32; 3]) {
        let mut data = Vec::new();
        self.slave.ioctl(&self.context(), TCGETS, 0, &mut data).unwrap();
        let termios = Termios { input, output, local, ..Termios::default().decode(&data).unwrap() };
        self.slave.ioctl(&self.context(), TCSETS, 0, &mut termios.encode()).unwrap();
    }

    fn hear(&self) -> Heard {
        let (mut heard, mut out) = (Heard::default(), [0; 4096]);
        while let Ok(count) = self.slave.read(&self.context(), 0, &mut out) {
            heard.slave.push(out[..count].to_vec());
        }
        while let Ok(count) = self.master.read(&self.context(), 0, &mut out) {
            heard.master.extend(&out[..count]);
        }
        heard
    }
}

struct Host {
    master: OwnedFd,
    slave: OwnedFd,
}

impl Host {
    fn new() -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let slave = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
        rustix::io::ioctl_fionbio(&master, true).unwrap();
        Self { master, slave }
    }

    fn set(&self, [input, output, local]: [u32; 3]) {
        let mut termios = tcgetattr(&self.slave).unwrap();
        termios.input_modes = InputModes::from_bits_retain(input);
        termios.output_modes = OutputModes::from_bits_retain(output);
        termios.local_modes = LocalModes::from_bits_retain(local);
        tcsetattr(&self.slave, OptionalActions::Now, &termios).unwrap();
    }

    /// What has come, once it is as long as `expected`, or does not become so.
    fn hear(&self, expected: &Heard) -> Heard {
        let (mut heard, mut out) = (Heard::default(), [0; 4096]);
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            while let Ok(count) = rustix::io::read(&self.slave, &mut out[..]) {
                heard.slave.push(out[..count].to_vec());
            }
            while let Ok(count) = rustix::io::read(&self.master, &mut out[..]) {
                heard.master.extend(&out[..count]);
            }
            let all = |heard: &Heard| (heard.slave.concat().len(), heard.slave.len(), heard.master.len());
            if all(&heard) >= all(expected) && heard.master.len() >= expected.master.len() || Instant::now() > deadline
            {
                return heard;
            }
            std::thread::sleep(Duration::from_micros(200)); // the host hands on in a thread of its own
        }
    }
}

/// Reads of a raw terminal may come in pieces.
fn joined(heard: Heard, canonical: bool) -> Heard {
    let slave = if canonical { heard.slave } else { vec![heard.slave.concat()] };
    Heard { slave, master: heard.master }
}

const TYPED: [&[u8]; 20] = [
    b"a",
    b"Zz",
    b"_9",
    b" ",
    b"\n",
    b"\r",
    b"\t",
    b"\x7f",
    b"\x15",
    b"\x17",
    b"\x16",
    b"\x04",
    b"\x12",
    b"\x03",
    b"\x1a",
    b"\x01",
    "é".as_bytes(),
    b"word",
    b"\x7f\x7f",
    b"x\ty",
];

fn settings(random: &mut Random) -> [u32; 3] {
    let mut some =
        |always: u32, bits: &[u32]| bits.iter().filter(|_| random.below(3) > 0).fold(always, |all, bit| all | bit);
    let input = some(0, &[0o40, 0o400, 0o40_000]) | some(0, &[0o200]) & 0o200;
    let output = some(0, &[0o1, 0o4, 0o10, 0o14_000]);
    let local = some(0, &[0o1, 0o2, 0o10, 0o20, 0o40, 0o100, 0o200, 0o1000, 0o4000, 0o100_000]);
    [input, output, local]
}

fn compare(host: &Host, ours: &Ours, canonical: bool, what: &str) {
    let mine = ours.hear();
    let theirs = joined(host.hear(&mine), canonical);
    assert_eq!(joined(mine, canonical), theirs, "{what}");
}

#[test]
fn a_terminal_answers_as_linux_does() {
    for seed in 1..=60 {
        let (host, ours, mut random) = (Host::new(), Ours::new(), Random(seed * 7919));
        let (mut canonical, mut done) = (true, String::new());
        for _ in 0..60 {
            match random.below(8) {
                0 => {
                    // what was typed before is done with: a line's end that cannot be quoted away
                    type_in(&host, &ours, b"\n\n");
                    compare(&host, &ours, canonical, &format!("seed {seed}: {done}"));
                    let to = settings(&mut random);
                    host.set(to);
                    ours.set(to);
                    canonical = to[2] & 0o2 != 0;
                    done = format!("set {:?}", to.map(|word| format!("{word:o}")));
                }
                1 | 2 => {
                    let text = [TYPED[random.below(TYPED.len())], b"out\n"].concat();
                    rustix::io::write(&host.slave, &text).unwrap();
                    ours.slave.write(&ours.context(), 0, &text).unwrap();
                    done += &format!(" out {text:?}");
                }
                _ => {
                    let text = TYPED[random.below(TYPED.len())];
                    type_in(&host, &ours, text);
                    done += &format!(" in {text:?}");
                }
            }
            compare(&host, &ours, canonical, &format!("seed {seed}: {done}"));
        }
    }
}

fn type_in(host: &Host, ours: &Ours, text: &[u8]) {
    assert_eq!(rustix::io::write(&host.master, text), Ok(text.len()));
    assert_eq!(ours.master.write(&ours.context(), 0, text), Ok(text.len()));
}
