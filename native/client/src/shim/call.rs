//! How containerd called us: its flags, its environment, and what it wrote to our standard input.

use crate::message;
use std::env;
use std::io::{self, Read};

const MAX_STDIN: u64 = 4 << 20;

#[derive(Default)]
pub struct Call {
    pub action: String,
    pub namespace: String,
    pub id: String,
    pub address: String,
    pub ttrpc: String,
    pub publish: String,
    pub info: bool,
    pub version: bool,
}

/// What containerd takes as the answer to `start`.
#[derive(PartialEq, Debug)]
pub enum Form {
    /// Up to 2.2: an address, and nothing else.
    Plain,
    /// From 2.3 on: a message.
    Message,
}

impl Call {
    /// Flags are those of Go: one dash or two, a value after a space or `=`.
    pub fn from_words(words: impl Iterator<Item = String>) -> Call {
        let mut call = Call::default();
        let mut words = words;
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix('-') else {
                call.action = word;
                continue;
            };
            let flag = flag.trim_start_matches('-');
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            call.take(name, value, &mut words);
        }
        call.ttrpc = env::var("TTRPC_ADDRESS").unwrap_or_default();
        call
    }

    fn take(&mut self, name: &str, value: Option<String>, words: &mut impl Iterator<Item = String>) {
        let place = match name {
            "namespace" => &mut self.namespace,
            "id" => &mut self.id,
            "address" => &mut self.address,
            "publish-binary" => &mut self.publish,
            "info" => return self.info = true,
            "v" | "version" => return self.version = true,
            "bundle" | "socket" | "log-format" | "log-level" => {
                let _ = value.or_else(|| words.next());
                return;
            }
            _ => return, // -debug, and what later versions add
        };
        *place = value.or_else(|| words.next()).unwrap_or_default();
    }

    /// Reads BootstrapParams, where there are any; what flags did not say they do.
    pub fn read_stdin(&mut self) -> Form {
        let mut data = Vec::new();
        // What cannot be read says nothing.
        let _ = io::stdin().take(MAX_STDIN).read_to_end(&mut data);
        self.take_params(&data)
    }

    fn take_params(&mut self, data: &[u8]) -> Form {
        let texts = message::texts(data).unwrap_or_default();
        let text = |field| {
            let found = texts.iter().find(|(number, _)| *number == field)?;
            String::from_utf8(found.1.to_vec()).ok().filter(|text| !text.is_empty())
        };
        // An Any with the runtime's options, which older versions write, has a type's name there.
        if text(1).is_none_or(|id| id != self.id && !self.id.is_empty()) {
            return Form::Plain;
        }
        let own = [&mut self.id, &mut self.namespace, &mut self.ttrpc, &mut self.address, &mut self.publish];
        for (place, field) in own.into_iter().zip([1, 2, 5, 6, 7]) {
            if place.is_empty() {
                *place = text(field).unwrap_or_default();
            }
        }
        Form::Message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(words: &[&str]) -> Call {
        Call::from_words(words.iter().map(|word| word.to_string()))
    }

    #[test]
    fn flags_of_every_version() {
        let found = call(&["-namespace", "n", "--address=/a", "-publish-binary", "p", "-id", "i", "-debug", "start"]);
        assert_eq!([&found.namespace, &found.address, &found.publish, &found.id], ["n", "/a", "p", "i"]);
        assert_eq!(found.action, "start");
        assert_eq!(call(&["-bundle", "start", "delete"]).action, "delete");
        assert!(call(&["-info"]).info && call(&["-v"]).version);
    }

    #[test]
    fn params_are_told_from_options() {
        let mut params = Vec::new();
        message::put_bytes(&mut params, 1, b"i");
        message::put_bytes(&mut params, 5, b"/t");
        let mut found = call(&["-id", "i", "-address", "/a"]);
        found.ttrpc = String::new();
        assert_eq!(found.take_params(&params), Form::Message);
        assert_eq!((found.ttrpc.as_str(), found.address.as_str()), ("/t", "/a"));
        let mut options = Vec::new();
        message::put_bytes(&mut options, 1, b"containerd.runc.v1.Options");
        for data in [&options[..], b"", b"\xff\xff"] {
            assert_eq!(call(&["-id", "i"]).take_params(data), Form::Plain);
        }
    }
}
