//! containerd-shim-drupe-v2: what containerd starts for a task. It asks the daemon, which serves the tasks of all, says
//! where that is, and ends. The kind of sandbox is in the name it is called by: `containerd-shim-drupe-KIND-v2`.

#![deny(unsafe_code)]

mod call;
mod message;

#[path = "../oci/control.rs"]
mod control;
#[path = "../oci/daemon.rs"]
mod daemon;
#[path = "../home.rs"]
mod home;

use call::{Call, Form};
use control::{text, Question};
use message::{put_bytes, put_number};
use serde_json::{json, Value};
use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

/// What each kind can do of what a config may ask for (runtime-spec, features.md).
const FEATURES: &[u8] = br#"{"ociVersionMin":"1.0.0","ociVersionMax":"1.2.0"}"#;
/// Of pods whose kernel is the host's: files with the ids of a user namespace.
const MAPPING_FEATURES: &[u8] = br#"{"ociVersionMin":"1.0.0","ociVersionMax":"1.2.0","linux":{"namespaces":["cgroup","ipc","mount","network","pid","user","uts"],"mountExtensions":{"idmap":{"enabled":true}}}}"#;
/// Without a kind in its name a handler may choose this one, too.
const MAPPING: [&str; 2] = ["containerd-shim-drupe-v2", "containerd-shim-drupe-runc-v2"];
const FEATURES_TYPE: &[u8] = b"types.containerd.io/opencontainers/runtime-spec/1/features/Features";

fn main() -> ExitCode {
    let mut words = env::args_os().map(|word| word.to_string_lossy().into_owned());
    let called = words.next().unwrap_or_default();
    let name = Path::new(&called).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut call = Call::from_words(words);
    let answer = match call.action.as_str() {
        _ if call.version => Ok(format!("{name}:\n  Version: {}\n", env!("CARGO_PKG_VERSION")).into_bytes()),
        _ if call.info => Ok(info(&name)),
        "start" => start(&name, &mut call),
        "delete" => delete(&call),
        other => Err(format!("no action {other:?}: start, delete, -info or -v")),
    };
    match answer.and_then(say) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// containerd reads all of standard output as the answer.
fn say(answer: Vec<u8>) -> Result<(), String> {
    let mut stdout = io::stdout();
    let said = stdout.write_all(&answer).and_then(|()| stdout.flush());
    said.map_err(|error| format!("cannot write standard output: {error}"))
}

fn start(name: &str, call: &mut Call) -> Result<Vec<u8>, String> {
    let form = call.read_stdin();
    let params = json!({
        "name": name, "namespace": call.namespace, "id": call.id, "grpc": call.address, "ttrpc": call.ttrpc,
        "publish": call.publish,
    });
    let answer = ask("containerd.start", &params)?;
    let address = text(&answer, "address");
    // Up to 1.7 containerd looks there for a task that is from before its restart; we are called in the bundle.
    let kept = fs::write(".address", address).and_then(|()| fs::rename(".address", "address"));
    kept.map_err(|error| format!("cannot write the bundle's file \"address\": {error}"))?;
    Ok(match form {
        Form::Plain => address.as_bytes().to_vec(),
        Form::Message => {
            let mut result = Vec::new();
            put_number(&mut result, 1, 3);
            put_bytes(&mut result, 2, address.as_bytes());
            put_bytes(&mut result, 3, b"ttrpc");
            result
        }
    })
}

fn delete(call: &Call) -> Result<Vec<u8>, String> {
    let params = json!({"namespace": call.namespace, "id": call.id, "grpc": call.address, "ttrpc": call.ttrpc});
    let answer = ask("containerd.delete", &params)?;
    let number = |name: &str| answer[name].as_u64().unwrap_or_default();
    let at = answer["exited_at"].as_f64().unwrap_or_default();
    let (mut result, mut time) = (Vec::new(), Vec::new());
    put_number(&mut time, 1, at as u64);
    put_number(&mut time, 2, (at.fract() * 1e9) as u64);
    put_number(&mut result, 1, number("pid"));
    put_number(&mut result, 2, number("exit_status"));
    put_bytes(&mut result, 3, &time);
    Ok(result)
}

fn ask(method: &str, params: &Value) -> Result<Value, String> {
    daemon::ask(&Question { method, params, fds: Vec::new(), once: false })
}

/// RuntimeInfo.
fn info(name: &str) -> Vec<u8> {
    let (mut result, mut version, mut features) = (Vec::new(), Vec::new(), Vec::new());
    let runtime = name.strip_prefix("containerd-shim-").unwrap_or(name).replace("-v", ".v");
    put_bytes(&mut result, 1, format!("io.containerd.{runtime}").as_bytes());
    put_bytes(&mut version, 1, env!("CARGO_PKG_VERSION").as_bytes());
    put_bytes(&mut result, 2, &version);
    put_bytes(&mut features, 1, FEATURES_TYPE);
    put_bytes(&mut features, 2, if MAPPING.contains(&name) { MAPPING_FEATURES } else { FEATURES });
    put_bytes(&mut result, 4, &features);
    result
}
