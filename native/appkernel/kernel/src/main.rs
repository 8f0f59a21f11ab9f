//! `drupe-appkernel`: the kernel of one pod.

fn main() {}
