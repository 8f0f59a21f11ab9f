//! Linux's x86-64 words: numbers, errors and structures as programs see them, encoded without `unsafe`.

pub mod errno;

pub use errno::{Errno, Result};
