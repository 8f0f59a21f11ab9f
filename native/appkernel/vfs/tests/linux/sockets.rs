//! Sockets: pairs through random sends, receives, shutdowns and closes; TCP and UDP between ports of this machine.

use crate::host::Host;
use crate::ours::Ours;
use crate::pipes::runs;
use crate::world::{Answer, Random, World};

const EVENTS: u16 = 0x1 | 0x4 | 0x40 | 0x100 | 0x2000;
/// Below what Linux counts as full, whose buffers hold more than the bytes.
const MAX_UNREAD: usize = 12_000;

struct Pair {
    ends: [Option<usize>; 2],
    /// Bytes that each end has not read.
    unread: [usize; 2],
    datagrams: bool,
}

impl Pair {
    fn step(&mut self, world: &mut dyn World, random: &mut Random, late: bool, said: &mut Vec<String>) {
        let (side, count, kind, value) = (random.below(2), random.below(3000), random.below(12), random.below(250));
        let Some(fd) = self.ends[side] else { return };
        match kind {
            0..=4 if self.unread[1 - side] < MAX_UNREAD => {
                let answer = world.write(fd, &vec![value as u8; count]);
                self.unread[1 - side] += answer.unwrap_or(0) + 300; // a message's own weight
                said.push(format!("{side} w {count} {answer:?}"));
            }
            5..=9 => {
                let answer: Answer<_> = world.read(fd, count);
                if answer.is_err() {
                    self.unread[side] = 0;
                }
                said.push(format!("{side} r {count} {:?}", answer.map(runs)));
            }
            10 if late => {
                // after SHUT_RD Linux tells who waits for a datagram the end, who does not EAGAIN: ours says the end
                let how = if self.datagrams { 1 } else { value % 3 };
                said.push(format!("{side} s {:?}", world.shutdown(fd, how as u32)));
            }
            11 if late && value < 60 => {
                world.close(fd);
                self.ends[side] = None;
            }
            _ => {}
        }
    }
}

fn pair_steps(world: &mut dyn World, kind: u32, seed: u64) -> Vec<String> {
    let mut random = Random(seed);
    let (one, two) = world.socketpair(kind);
    let mut pair = Pair { ends: [Some(one), Some(two)], unread: [0; 2], datagrams: kind == 2 };
    let mut said = Vec::new();
    for step in 0..120 {
        pair.step(world, &mut random, step > 60, &mut said);
        for fd in pair.ends.into_iter().flatten() {
            said.push(format!("{:#x} {:?}", world.poll(fd, EVENTS), world.readable_bytes(fd)));
        }
    }
    pair.ends.into_iter().flatten().for_each(|fd| world.close(fd));
    said
}

fn first_difference(mine: &[String], theirs: &[String]) -> Option<String> {
    let at = mine.iter().zip(theirs).position(|(mine, theirs)| mine != theirs)?;
    Some(format!("{:#?}\nLinux: {}", &mine[at.saturating_sub(12)..=at], theirs[at]))
}

#[test]
fn socket_pairs_answer_as_linux_does() {
    let (mut host, mut ours) = (Host::default(), Ours::new());
    for (kind, seed) in [1, 2, 5].into_iter().flat_map(|kind| (1..=30).map(move |seed| (kind, seed))) {
        let (mine, theirs) = (pair_steps(&mut ours, kind, seed), pair_steps(&mut host, kind, seed));
        let difference = first_difference(&mine, &theirs);
        assert!(difference.is_none(), "kind {kind}, seed {seed}: {}", difference.unwrap());
    }
}

/// The host's loopback device hands over at once, as ours does.
fn tcp(world: &mut dyn World) -> Vec<String> {
    let mut said = Vec::new();
    let (listener, port) = world.bound(1);
    said.push(format!("{:?}", world.connect(1, port).is_err()));
    said.push(format!("{:?} {:?}", world.listen(listener), world.accept(listener)));
    let client = world.connect(1, port).unwrap();
    said.push(format!("{:#x}", world.poll(listener, EVENTS)));
    let server = world.accept(listener).unwrap();
    said.push(format!("{:?} {:?}", world.write(client, b"question"), world.read(server, 100)));
    said.push(format!("{:?} {:?}", world.read(server, 100), world.read(client, 100)));
    said.push(format!("{:?} {:#x}", world.shutdown(client, 1), world.poll(server, EVENTS)));
    said.push(format!("{:?} {:?}", world.read(server, 100), world.write(server, b"answer")));
    said.push(format!("{:?} {:?}", world.write(client, b"more"), world.read(client, 100)));
    world.close(server);
    said.push(format!("{:?} {:#x}", world.read(client, 100), world.poll(client, EVENTS)));
    world.close(listener);
    said.push(format!("{:?}", world.connect(1, port)));
    world.close(client);
    said
}

#[test]
fn tcp_answers_as_linux_does() {
    assert_eq!(tcp(&mut Ours::new()), tcp(&mut Host::default()));
}

fn udp(world: &mut dyn World) -> Vec<String> {
    let mut said = Vec::new();
    let ((one, first), (two, second)) = (world.bound(2), world.bound(2));
    said.push(format!("{:?}", world.write(one, b"to nobody")));
    for size in [0, 1, 1000, 65_507, 65_508] {
        said.push(format!("{:?}", world.send_to(one, second, &vec![7; size])));
        said.push(format!("{:#x} {:?}", world.poll(two, EVENTS), world.readable_bytes(two)));
        said.push(format!("{:?}", world.receive_from(two, 999, first).map(|(bytes, from)| (runs(bytes), from))));
    }
    said.push(format!("{:?} {:?}", world.receive_from(two, 9, first), world.shutdown(one, 1)));
    let third = world.connect(2, second).unwrap();
    said.push(format!("{:?} {:?}", world.write(third, b"connected"), world.read(two, 99)));
    [one, two, third].into_iter().for_each(|fd| world.close(fd));
    said
}

#[test]
fn udp_answers_as_linux_does() {
    assert_eq!(udp(&mut Ours::new()), udp(&mut Host::default()));
}
