//! eventfd and epoll, over pipes too.

use crate::host::Host;
use crate::ours::Ours;
use crate::pipes::runs;
use crate::world::{Random, World};

const ET: u32 = 1 << 31;
const ONESHOT: u32 = 1 << 30;

fn eventfd_steps(world: &mut dyn World, seed: u64) -> Vec<String> {
    let mut random = Random(seed);
    let fd = world.eventfd(random.below(5) as u32, random.below(2) == 0);
    let values = [0, 1, 2, 7, u64::MAX, u64::MAX - 1, u64::MAX - 2, 1 << 63];
    let mut said = Vec::new();
    for _ in 0..40 {
        match random.below(3) {
            0 => said.push(format!("{:?}", world.read(fd, 4 + random.below(9)))),
            1 => said.push(format!("{:?}", world.write(fd, &values[random.below(8)].to_ne_bytes()))),
            _ => said.push(format!("{:?}", world.write(fd, &[1; 7]))),
        }
        said.push(format!("{:#x}", world.poll(fd, 0x5)));
    }
    world.close(fd);
    said
}

#[test]
fn an_eventfd_answers_as_linux_does() {
    let (mut host, mut ours) = (Host::default(), Ours::new());
    for seed in 1..=60 {
        assert_eq!(eventfd_steps(&mut ours, seed), eventfd_steps(&mut host, seed), "seed {seed}");
    }
}

/// Watched: an eventfd, both ends of a pipe, and an epoll inside that watches a second eventfd.
struct Scene {
    outer: usize,
    inner: usize,
    watched: Vec<usize>,
}

impl Scene {
    fn new(world: &mut dyn World) -> Self {
        let (outer, inner) = (world.epoll(), world.epoll());
        let (read, write) = world.pipe();
        let (first, second) = (world.eventfd(0, false), world.eventfd(0, true));
        Self { outer, inner, watched: vec![inner, read, write, first, second] }
    }

    fn close(self, world: &mut dyn World) {
        world.close(self.outer);
        self.watched.into_iter().for_each(|fd| world.close(fd));
    }
}

fn epoll_step(world: &mut dyn World, scene: &Scene, random: &mut Random, said: &mut Vec<String>) {
    let fd = scene.watched[random.below(scene.watched.len())];
    let data = random.below(1000) as u64;
    match random.below(10) {
        0..=2 => {
            let epoll = if random.below(3) == 0 { scene.inner } else { scene.outer };
            let events = [0x1, 0x4, 0x5, 0x1 | ET, 0x5 | ET, 0x5 | ONESHOT, 0][random.below(7)];
            let control = 1 + random.below(3) as u32;
            let answer = world.epoll_ctl(epoll, control, fd, events, data);
            said.push(format!("ctl {epoll} {control} {fd} {events:x} {data:x} {answer:?}"));
        }
        3 => said.push(format!("r {:?}", world.read(scene.watched[1], 4096 * random.below(20)).map(runs))),
        4 => said.push(format!("w {:?}", world.write(scene.watched[2], &vec![7; 4096 * random.below(20)]))),
        5 => said.push(format!("w {:?}", world.write(scene.watched[3], &1_u64.to_ne_bytes()))),
        6 => said.push(format!("r {:?}", world.read(scene.watched[3], 8))),
        7 => said.push(format!("w {:?}", world.write(scene.watched[4], &2_u64.to_ne_bytes()))),
        8 => said.push(format!("r {:?}", world.read(scene.watched[4], 8))),
        _ => said.push(format!("poll {:#x}", world.poll(scene.outer, 0x1))),
    }
}

fn epoll_steps(world: &mut dyn World, seed: u64) -> Vec<String> {
    let mut random = Random(seed);
    let scene = Scene::new(world);
    let mut said = Vec::new();
    for _ in 0..200 {
        epoll_step(world, &scene, &mut random, &mut said);
        let epoll = if random.below(4) == 0 { scene.inner } else { scene.outer };
        let mut events = world.epoll_wait(epoll, 10);
        events.sort_unstable(); // the order among files that are ready is nobody's promise
        said.push(format!("{epoll} {events:x?}"));
    }
    scene.close(world);
    said
}

#[test]
fn epoll_answers_as_linux_does() {
    let (mut host, mut ours) = (Host::default(), Ours::new());
    for seed in 1..=20 {
        let (mine, theirs) = (epoll_steps(&mut ours, seed), epoll_steps(&mut host, seed));
        let differs = mine.iter().zip(&theirs).position(|(a, b)| a != b);
        let at = differs.map(|at| (&mine[..=at], &theirs[at]));
        assert!(differs.is_none(), "seed {seed}: {at:#?}");
    }
}

/// What was closed is watched no more, unless a duplicate keeps the open file; a file that is always ready is refused.
fn closing(world: &mut dyn World) -> Vec<String> {
    let (epoll, event) = (world.epoll(), world.eventfd(1, false));
    let copy = world.dup(event);
    let mut said = vec![format!("{:?}", world.epoll_ctl(epoll, 1, event, 1, 5))];
    said.push(format!("{:?}", world.epoll_ctl(epoll, 1, copy, 1, 6)));
    said.push(format!("{:?}", world.epoll_ctl(epoll, 1, epoll, 1, 6)));
    world.close(event);
    let mut events = world.epoll_wait(epoll, 9);
    events.sort_unstable();
    said.push(format!("{events:?}"));
    world.close(copy);
    said.push(format!("{:?}", world.epoll_wait(epoll, 9)));
    let fresh = world.eventfd(1, false);
    said.push(format!("{:?} {:?}", world.epoll_ctl(epoll, 3, fresh, 1, 9), world.epoll_ctl(epoll, 1, fresh, 1, 9)));
    said.push(format!("{:?}", world.epoll_wait(epoll, 9)));
    [fresh, epoll].into_iter().for_each(|fd| world.close(fd));
    said
}

#[test]
fn closed_files_are_watched_no_more() {
    assert_eq!(closing(&mut Ours::new()), closing(&mut Host::default()));
}

/// A chain of epolls may be so long and no longer, and no ring.
fn nesting(world: &mut dyn World) -> Vec<String> {
    let chain: Vec<usize> = (0..7).map(|_| world.epoll()).collect();
    let mut said: Vec<String> =
        chain.windows(2).map(|pair| format!("{:?}", world.epoll_ctl(pair[1], 1, pair[0], 1, 0))).collect();
    said.push(format!("{:?}", world.epoll_ctl(chain[0], 1, chain[2], 1, 0)));
    chain.into_iter().for_each(|fd| world.close(fd));
    said
}

#[test]
fn nesting_ends_where_linux_ends_it() {
    assert_eq!(nesting(&mut Ours::new()), nesting(&mut Host::default()));
}
