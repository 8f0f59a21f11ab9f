//! Random changes of a directory tree: the host's file system, our tmpfs, and our overlay, whose lower layers hold what the
//! others were given at the start. Answers and the whole tree are the same.

use crate::tree::{snapshot, tmpfs, HostTree, OurTree, Tree};
use crate::world::Random;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const EXDEV: i32 = 18;

fn path(random: &mut Random) -> String {
    let depth = 1 + random.below(3);
    let parts: Vec<&str> = (0..depth).map(|_| NAMES[random.below(NAMES.len())]).collect();
    parts.join("/")
}

/// One change, and what was answered.
fn step(tree: &dyn Tree, random: &mut Random) -> String {
    let (one, two, kind, value) = (path(random), path(random), random.below(14), random.below(5000));
    let answer = match kind {
        0 | 1 => tree.mkdir(&one),
        2..=4 => tree.write(&one, value as u64, &[value as u8; 10], random.below(2) == 0),
        5 => tree.unlink(&one),
        6 => tree.rmdir(&one),
        7 | 8 => tree.rename(&one, &two),
        9 => tree.symlink(&two, &one),
        10 => tree.link(&one, &two),
        11 => tree.chmod(&one, value as u32 & 0o777 | 0o700),
        12 => tree.read(&one).map(drop),
        _ => tree.list(&one).map(drop),
    };
    format!("{kind} {one} {two} {answer:?}")
}

fn all(tree: &dyn Tree) -> Vec<String> {
    let mut out = Vec::new();
    snapshot(tree, ".", &mut out);
    out
}

#[test]
fn a_tmpfs_changes_as_the_host_does() {
    for seed in 1..=8 {
        let (host, ours) = (HostTree::new(&format!("tmpfs{seed}")), OurTree::new(tmpfs()));
        let (mut one, mut two) = (Random(seed), Random(seed));
        for at in 0..150 {
            assert_eq!(step(&ours, &mut one), step(&host, &mut two), "seed {seed}, step {at}");
        }
        assert_eq!(all(&ours), all(&host), "seed {seed}");
    }
}

/// Lower layers with the same first steps' results as the plain tree: the lowest, then what the next one adds.
fn overlay_of(seed: u64, plain: &dyn Tree) -> OurTree {
    let lowest = tmpfs();
    let layer = OurTree::new(lowest.clone());
    let (mut one, mut two) = (Random(seed), Random(seed));
    for _ in 0..60 {
        assert_eq!(step(&layer, &mut one), step(plain, &mut two));
    }
    let middle = tmpfs();
    let (added, written) = (OurTree::new(middle.clone()), format!("m{seed}"));
    added.mkdir(&written).unwrap();
    plain.mkdir(&written).unwrap();
    OurTree::overlay(&[&middle, &lowest])
}

/// Steps whose answer may differ: a directory of a lower layer cannot be renamed. Then the plain tree does not either.
fn same_step(overlay: &OurTree, plain: &dyn Tree, one: &mut Random, two: &mut Random) -> (String, String) {
    let ours = step(overlay, one);
    if ours.ends_with(&format!("Err({EXDEV})")) {
        two.0 = one.0;
        return (String::new(), String::new());
    }
    (ours, step(plain, two))
}

#[test]
fn an_overlay_changes_as_one_tree() {
    for seed in 1..=10 {
        let plain = OurTree::new(tmpfs());
        let overlay = overlay_of(seed, &plain);
        let (mut one, mut two) = (Random(seed + 1000), Random(seed + 1000));
        for at in 0..200 {
            let (ours, theirs) = same_step(&overlay, &plain, &mut one, &mut two);
            assert_eq!(ours, theirs, "seed {seed}, step {at}");
            if at % 20 == 0 {
                assert_eq!(all(&overlay), all(&plain), "seed {seed}, step {at}");
            }
        }
        assert_eq!(all(&overlay), all(&plain), "seed {seed}");
    }
}
