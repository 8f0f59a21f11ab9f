//! inotify(7): random changes, and the events that watchers of the tree's directories and files read.

use std::collections::HashMap;
use std::mem::MaybeUninit;

use drupe_appkernel_vfs::inotify::Inotify;
use drupe_appkernel_vfs::walk::How;
use drupe_appkernel_vfs::{Context, Credentials, File, Timestamp};
use rustix::fs::inotify::{add_watch, init, CreateFlags, Reader, WatchFlags};

use crate::tree::{tmpfs, HostTree, OurTree, Tree};
use crate::world::Random;

const ALL: u32 = 0xfff;
const NAMES: [&str; 5] = ["d", "d/e", "f", "d/g", "d/e/h"];

/// Watch, mask, number of the pair that a move's cookie makes, name.
type Event = (i32, u32, usize, String);

/// Cookies are counted in the order in which they come, 0 for none.
fn numbered(events: Vec<(i32, u32, u32, String)>) -> Vec<Event> {
    let mut seen = HashMap::from([(0, 0)]);
    let mut number = |cookie| {
        let next = seen.len();
        *seen.entry(cookie).or_insert(next)
    };
    events.into_iter().map(|(watch, mask, cookie, name)| (watch, mask, number(cookie), name)).collect()
}

fn decode(mut bytes: &[u8]) -> Vec<(i32, u32, u32, String)> {
    let mut found = Vec::new();
    while bytes.len() >= 16 {
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (end, name) = (16 + word(12) as usize, &bytes[16..16 + word(12) as usize]);
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        found.push((word(0) as i32, word(4), word(8), String::from_utf8_lossy(name).into_owned()));
        bytes = &bytes[end..];
    }
    found
}

fn ours(inotify: &Inotify) -> Vec<Event> {
    let credentials = Credentials::root();
    let context = Context { credentials: &credentials, now: Timestamp::ZERO, pid: 1, session: 1 };
    let mut out = vec![0; 1 << 16];
    let count = inotify.read(&context, 0, &mut out).unwrap_or(0);
    numbered(decode(&out[..count]))
}

fn host(inotify: &impl std::os::fd::AsFd) -> Vec<Event> {
    let mut buffer = [MaybeUninit::uninit(); 1 << 14];
    let mut reader = Reader::new(inotify.as_fd(), &mut buffer);
    let mut found = Vec::new();
    while let Ok(event) = reader.next() {
        let name = event.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        found.push((event.wd(), event.events().bits(), event.cookie(), name));
    }
    numbered(found)
}

fn step(tree: &dyn Tree, random: &mut Random) -> String {
    let (one, two, kind) = (NAMES[random.below(5)], NAMES[random.below(5)], random.below(11));
    let answer = match kind {
        0 => tree.mkdir(one),
        1 | 2 => tree.write(one, 0, b"bytes", random.below(2) == 0),
        3 => tree.unlink(one),
        4 => tree.rmdir(one),
        5 | 6 => tree.rename(one, two),
        7 => tree.link(one, two),
        8 => tree.chmod(one, 0o700 + random.below(64) as u32),
        9 => tree.read(one).map(drop),
        _ => tree.symlink("f", one),
    };
    format!("{kind} {one} {two} {answer:?}")
}

#[test]
fn watchers_read_the_events_that_linux_tells() {
    for seed in 1..=20 {
        let (there, here) = (HostTree::new(&format!("notices{seed}")), OurTree::new(tmpfs()));
        for tree in [&there as &dyn Tree, &here] {
            tree.mkdir("d").unwrap();
            tree.mkdir("d/e").unwrap();
            tree.write("d/g", 0, b"x", false).unwrap();
            tree.write("f", 0, b"x", false).unwrap();
        }
        let (theirs, mine) = (init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap(), Inotify::new());
        for name in [".", "d", "d/e", "f"] {
            let path = here.with(|view, root| view.walk(root, name.as_bytes(), How::FOLLOW)).unwrap();
            let expected = add_watch(&theirs, there.0.join(name), WatchFlags::from_bits_retain(ALL)).unwrap();
            assert_eq!(mine.add(&path, ALL), Ok(expected));
        }
        let (mut one, mut two, mut done) = (Random(seed * 31), Random(seed * 31), Vec::new());
        for _ in 0..60 {
            done.push(step(&there, &mut one));
            assert_eq!(&step(&here, &mut two), done.last().unwrap());
            assert_eq!(ours(&mine), host(&theirs), "seed {seed}: {done:#?}");
        }
    }
}
