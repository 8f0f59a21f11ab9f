//! What a call fails with: a status of gRPC and words.

use std::fmt::Display;
use std::io;

/// The codes of gRPC that the agent answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Cancelled = 1,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Unimplemented = 12,
    Internal = 13,
}

#[derive(Clone, Debug)]
pub struct Fault {
    pub code: Code,
    pub words: String,
}

pub type Reply<T> = Result<T, Fault>;

pub fn fault(code: Code, words: impl Into<String>) -> Fault {
    Fault { code, words: words.into() }
}

pub fn invalid(words: impl Into<String>) -> Fault {
    fault(Code::InvalidArgument, words)
}

pub fn not_found(words: impl Into<String>) -> Fault {
    fault(Code::NotFound, words)
}

pub fn wrong_state(words: impl Into<String>) -> Fault {
    fault(Code::FailedPrecondition, words)
}

/// An error of the kernel with what was tried: `.during(|| format!("mount {target}"))`.
pub trait During<T> {
    fn during<W: Display>(self, what: impl FnOnce() -> W) -> Reply<T>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during<W: Display>(self, what: impl FnOnce() -> W) -> Reply<T> {
        self.map_err(|error| {
            let error = error.into();
            let code = match error.kind() {
                io::ErrorKind::NotFound => Code::NotFound,
                io::ErrorKind::AlreadyExists => Code::AlreadyExists,
                io::ErrorKind::InvalidInput => Code::InvalidArgument,
                _ => Code::Internal,
            };
            fault(code, format!("{}: {}", what(), plain(&error)))
        })
    }
}

/// An error's words without Rust's " (os error 2)".
pub fn plain(error: &io::Error) -> String {
    let words = error.to_string();
    words.split(" (os error").next().unwrap_or_default().to_string()
}
