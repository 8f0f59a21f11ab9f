//! Pipes: what is read, what is refused, what poll says, through random writes, reads and closes.

use crate::host::Host;
use crate::ours::Ours;
use crate::world::{Random, World};

const PAGE: usize = 4096;
const EVENTS: u16 = 0x1 | 0x4 | 0x40 | 0x100;

/// Bytes as (value, how many of it in a row).
pub fn runs(bytes: Vec<u8>) -> Vec<(u8, usize)> {
    bytes.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect()
}

/// One pipe until both ends are closed. Writes are whole pages, since Linux counts pages and we count bytes.
fn steps(world: &mut dyn World, seed: u64) -> Vec<String> {
    let mut random = Random(seed);
    let (read, write) = world.pipe();
    let mut open = [true, true];
    let mut said = Vec::new();
    for step in 0..300 {
        let count = PAGE * random.below(24);
        let kind = random.below(if step < 250 { 8 } else { 10 });
        match kind {
            0..=2 if open[1] => said.push(format!("w {count} {:?}", world.write(write, &vec![step as u8; count]))),
            3..=5 if open[0] => said.push(format!("r {count} {:?}", world.read(read, count).map(runs))),
            8 if open[0] => world.close(read),
            9 if open[1] => world.close(write),
            _ => {}
        }
        open[0] &= kind != 8;
        open[1] &= kind != 9;
        for (fd, _) in [read, write].into_iter().zip(open).filter(|(_, open)| *open) {
            said.push(format!("{fd} {:#x} {:?}", world.poll(fd, EVENTS), world.readable_bytes(fd)));
        }
    }
    [read, write].into_iter().zip(open).filter(|(_, open)| *open).for_each(|(fd, _)| world.close(fd));
    said
}

#[test]
fn a_pipe_answers_as_linux_does() {
    let (mut host, mut ours) = (Host::default(), Ours::new());
    for seed in 1..=10 {
        assert_eq!(steps(&mut ours, seed), steps(&mut host, seed), "seed {seed}");
    }
}

/// Small writes gather in full pages, small reads leave them: only the bytes and the order are the same, not when it is full.
fn bytes(world: &mut dyn World, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let (read, write) = world.pipe();
    let (mut got, mut sent, mut left) = (Vec::new(), 0_u8, 0);
    for _ in 0..400 {
        let count = 1 + random.below(3000);
        if left < 30_000 && random.below(2) == 0 {
            let data: Vec<u8> = (0..count).map(|_| random.below(256) as u8).collect();
            assert_eq!(world.write(write, &data), Ok(count));
            (sent, left) = (sent.wrapping_add(1), left + count);
        } else if let Ok(data) = world.read(read, count) {
            left -= data.len();
            got.extend(data);
        }
    }
    [read, write].into_iter().for_each(|fd| world.close(fd));
    got
}

#[test]
fn bytes_come_in_order() {
    let (mut host, mut ours) = (Host::default(), Ours::new());
    for seed in 1..=20 {
        assert_eq!(bytes(&mut ours, seed), bytes(&mut host, seed), "seed {seed}");
    }
}
