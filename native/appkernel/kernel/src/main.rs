//! `drupe-appkernel`: the kernel of one pod.

mod ops;
mod trap;
#[cfg(test)]
mod trap_tests;

fn main() {
    let _ = trap::Stubs::start();
}
