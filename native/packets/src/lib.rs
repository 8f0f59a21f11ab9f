//! What travels on control sockets (the keeper's, an application kernel's): one JSON object a packet, with fields that are
//! taken by name and type, descriptors by name, answers, failures.

#![forbid(unsafe_code)]

use serde_json::{json, Map, Value};
use std::fmt::Display;
use std::io;
use std::os::fd::OwnedFd;

/// The longest packet, in either direction.
pub const MAX_PACKET: usize = 192 * 1024;

/// Why a request was not done.
#[derive(Debug)]
pub struct Failure {
    pub errno: String,
    pub message: String,
    pub stderr: String,
}

pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    pub fn new(errno: &str, message: impl Display) -> Self {
        Failure { errno: errno.into(), message: message.to_string(), stderr: String::new() }
    }

    /// A failed system call; `what` says what was being done to what.
    pub fn io(what: impl Display, error: &io::Error) -> Self {
        let text = error.to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        Failure::new(&errno_name(error.raw_os_error().unwrap_or(libc::EIO)), format!("{what}: {text}"))
    }

    pub fn invalid(message: impl Display) -> Self {
        Failure::new("EINVAL", message)
    }

    pub fn with_stderr(mut self, text: String) -> Self {
        self.stderr = text;
        self
    }

    pub fn to_json(&self) -> Value {
        json!({"errno": self.errno, "message": self.message, "stderr": self.stderr})
    }
}

/// The symbolic name of an error number, as in errno(3).
pub fn errno_name(number: i32) -> String {
    let name = match number {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::ESRCH => "ESRCH",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::E2BIG => "E2BIG",
        libc::ENOEXEC => "ENOEXEC",
        libc::EBADF => "EBADF",
        libc::ECHILD => "ECHILD",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::ENOTBLK => "ENOTBLK",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::EXDEV => "EXDEV",
        libc::ENODEV => "ENODEV",
        libc::ENOTDIR => "ENOTDIR",
        libc::EISDIR => "EISDIR",
        libc::EINVAL => "EINVAL",
        libc::ENFILE => "ENFILE",
        libc::EMFILE => "EMFILE",
        libc::ENOTTY => "ENOTTY",
        libc::ETXTBSY => "ETXTBSY",
        libc::EFBIG => "EFBIG",
        libc::ENOSPC => "ENOSPC",
        libc::EROFS => "EROFS",
        libc::EMLINK => "EMLINK",
        libc::EPIPE => "EPIPE",
        libc::ERANGE => "ERANGE",
        libc::ENAMETOOLONG => "ENAMETOOLONG",
        libc::ENOSYS => "ENOSYS",
        libc::ENOTEMPTY => "ENOTEMPTY",
        libc::ELOOP => "ELOOP",
        libc::EUSERS => "EUSERS",
        libc::EOVERFLOW => "EOVERFLOW",
        libc::EPROTO => "EPROTO",
        libc::EMSGSIZE => "EMSGSIZE",
        libc::EPROTONOSUPPORT => "EPROTONOSUPPORT",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::EAFNOSUPPORT => "EAFNOSUPPORT",
        libc::ENOBUFS => "ENOBUFS",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::EDQUOT => "EDQUOT",
        libc::ESTALE => "ESTALE",
        _ => return format!("E{number}"),
    };
    name.into()
}

/// A type that a field may have.
pub trait Field: Sized {
    const EXPECTS: &'static str;
    fn from_json(value: Value) -> Option<Self>;
}

impl Field for String {
    const EXPECTS: &'static str = "a string without NUL";
    fn from_json(value: Value) -> Option<Self> {
        match value {
            Value::String(text) if !text.contains('\0') => Some(text),
            _ => None,
        }
    }
}

impl Field for bool {
    const EXPECTS: &'static str = "true or false";
    fn from_json(value: Value) -> Option<Self> {
        value.as_bool()
    }
}

impl Field for i64 {
    const EXPECTS: &'static str = "an integer";
    fn from_json(value: Value) -> Option<Self> {
        value.as_i64()
    }
}

impl Field for u64 {
    const EXPECTS: &'static str = "an integer that is not negative";
    fn from_json(value: Value) -> Option<Self> {
        value.as_u64()
    }
}

impl Field for u32 {
    const EXPECTS: &'static str = "an integer of 32 bits that is not negative";
    fn from_json(value: Value) -> Option<Self> {
        value.as_u64()?.try_into().ok()
    }
}

impl Field for u16 {
    const EXPECTS: &'static str = "an integer from 0 to 65535";
    fn from_json(value: Value) -> Option<Self> {
        value.as_u64()?.try_into().ok()
    }
}

impl Field for i32 {
    const EXPECTS: &'static str = "an integer of 32 bits";
    fn from_json(value: Value) -> Option<Self> {
        value.as_i64()?.try_into().ok()
    }
}

impl Field for f64 {
    const EXPECTS: &'static str = "a number";
    fn from_json(value: Value) -> Option<Self> {
        value.as_f64()
    }
}

impl Field for Fields {
    const EXPECTS: &'static str = "an object";
    fn from_json(value: Value) -> Option<Self> {
        match value {
            Value::Object(map) => Some(Fields(map)),
            _ => None,
        }
    }
}

impl<T: Field> Field for Vec<T> {
    const EXPECTS: &'static str = "a list, each item of the right type";
    fn from_json(value: Value) -> Option<Self> {
        match value {
            Value::Array(items) => items.into_iter().map(T::from_json).collect(),
            _ => None,
        }
    }
}

/// An object of strings, in the order of its names.
pub struct Pairs(pub Vec<(String, String)>);

impl Field for Pairs {
    const EXPECTS: &'static str = "an object of strings";
    fn from_json(value: Value) -> Option<Self> {
        match value {
            Value::Object(map) => {
                let pairs = map.into_iter().map(|(name, value)| {
                    let fine = !name.is_empty() && !name.contains('\0');
                    fine.then_some((name, String::from_json(value)?))
                });
                pairs.collect::<Option<Vec<_>>>().map(Pairs)
            }
            _ => None,
        }
    }
}

/// The fields of a request that were not taken yet. What is left at the end is unknown, and refused.
pub struct Fields(pub Map<String, Value>);

impl Fields {
    pub fn parse(packet: &[u8]) -> Outcome<Fields> {
        match serde_json::from_slice(packet) {
            Ok(Value::Object(map)) => Ok(Fields(map)),
            Ok(_) => Err(Failure::invalid("a request is a JSON object")),
            Err(error) => Err(Failure::invalid(format!("not JSON: {error}"))),
        }
    }

    pub fn take<T: Field>(&mut self, name: &str) -> Outcome<Option<T>> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match T::from_json(value) {
                Some(value) => Ok(Some(value)),
                None => Err(Failure::invalid(format!("field {name:?} must be {}", T::EXPECTS))),
            },
        }
    }

    pub fn need<T: Field>(&mut self, name: &str) -> Outcome<T> {
        self.take(name)?.ok_or_else(|| Failure::invalid(format!("field {name:?} is missing")))
    }

    pub fn finish(self) -> Outcome<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(Failure::invalid(format!("unknown field {name:?}"))),
        }
    }
}

/// Descriptors by name.
#[derive(Default)]
pub struct Fds(pub Vec<(String, OwnedFd)>);

impl Fds {
    pub fn named(names: Vec<String>, fds: Vec<OwnedFd>) -> Outcome<Fds> {
        if names.len() != fds.len() {
            let message = format!("field \"fds\" names {} descriptors, {} came", names.len(), fds.len());
            return Err(Failure::invalid(message));
        }
        Ok(Fds(names.into_iter().zip(fds).collect()))
    }

    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let index = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(index).1)
    }

    /// The descriptors of these names, in this order.
    pub fn take_all(&mut self, names: &[String]) -> Outcome<Vec<OwnedFd>> {
        let found = names.iter().map(|name| {
            self.take(name).ok_or_else(|| Failure::new("EBADF", format!("no descriptor {name:?} was sent")))
        });
        found.collect()
    }

    pub fn push(&mut self, name: &str, fd: OwnedFd) {
        self.0.push((name.into(), fd));
    }

    pub fn finish(&self) -> Outcome<()> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(Failure::invalid(format!("this request takes no descriptor {name:?}"))),
        }
    }
}

/// What a request is answered with at once; None: the answer comes later.
pub type Reply = Option<(Value, Fds)>;

/// An answer without descriptors.
pub fn reply(value: Value) -> Outcome<Reply> {
    Ok(Some((value, Fds::default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn takes_fields_by_type() {
        let mut request = fields(r#"{"a": "x", "b": [1, 2], "c": {"k": "v"}, "d": null, "e": true}"#);
        assert_eq!(request.need::<String>("a").unwrap(), "x");
        assert_eq!(request.need::<Vec<u32>>("b").unwrap(), [1, 2]);
        assert_eq!(request.need::<Pairs>("c").unwrap().0, [("k".to_string(), "v".to_string())]);
        assert!(request.take::<String>("d").unwrap().is_none());
        assert!(request.need::<bool>("e").unwrap());
        request.finish().unwrap();
    }

    #[test]
    fn says_what_is_wrong() {
        assert!(fields("{}").need::<String>("dir").unwrap_err().message.contains("\"dir\" is missing"));
        assert!(fields(r#"{"dir": 1}"#).need::<String>("dir").unwrap_err().message.contains("a string"));
        assert!(fields(r#"{"dir": "a\u0000b"}"#).need::<String>("dir").is_err());
        assert!(fields(r#"{"port": -1}"#).need::<u16>("port").is_err());
        assert!(fields(r#"{"port": 70000}"#).need::<u16>("port").is_err());
        assert!(fields(r#"{"x": 1}"#).finish().unwrap_err().message.contains("unknown field \"x\""));
        assert!(Fields::parse(b"[]").is_err());
        assert!(Fields::parse(b"\xff\xfe").is_err());
        assert!(Fields::parse(b"").is_err());
    }

    #[test]
    fn garbage_never_panics() {
        // A small deterministic generator: mutations of a valid packet, cut and flipped at every place.
        let valid = br#"{"id": 1, "op": "run", "argv": ["a"], "env": {"A": "b"}, "timeout_ms": 5, "pass": []}"#;
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        for round in 0..20_000usize {
            let mut packet = valid.to_vec();
            for _ in 0..=round % 4 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let place = (seed >> 33) as usize % packet.len();
                packet[place] = (seed >> 25) as u8;
            }
            packet.truncate(1 + (seed >> 40) as usize % packet.len());
            if let Ok(mut request) = Fields::parse(&packet) {
                let _ = request.take::<u64>("id");
                let _ = request.take::<Vec<String>>("argv");
                let _ = request.take::<Pairs>("env");
                let _ = request.take::<i64>("timeout_ms");
                let _ = request.finish();
            }
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        assert!(Fields::parse("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn error_names() {
        assert_eq!(errno_name(libc::ENOSPC), "ENOSPC");
        assert_eq!(errno_name(4095), "E4095");
    }
}
