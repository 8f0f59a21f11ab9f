//! Linux's x86-64 words: numbers, errors and structures as programs see them, encoded without `unsafe`.

pub mod codec;
pub mod errno;
pub mod registers;

pub use errno::{Errno, Result};
pub use registers::Registers;
