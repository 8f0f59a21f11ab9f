//! drupe-oci: the OCI runtime command line. The daemon understands our words and says what to do; we do it, as the process
//! that Podman, containerd or a shell waits for: its descriptors, namespaces and children are ours to hand on. We keep
//! no state and decide nothing.

#![deny(unsafe_code)]

mod act;
mod control;
mod daemon;
#[path = "../home.rs"]
mod home;
mod make;
mod stand_in;

use control::Question;
use make::Standing;
use serde_json::{json, Map, Value};
use std::env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

const FAILED: u8 = 1;
const EXEC_FAILED: u8 = 255;
const MAX_TEXT: u64 = 4 << 20;

fn main() -> ExitCode {
    let mut words = env::args_os().map(|word| word.into_string());
    let called = words.next().and_then(Result::ok).unwrap_or_default();
    let name = Path::new(&called).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let argv: Result<Vec<String>, _> = words.collect();
    let outcome = match argv {
        Ok(argv) if argv.first().is_some_and(|word| word == stand_in::WORD) => {
            stand_in::stand(&argv).map_err(|error| (error.to_string(), argv))
        }
        Ok(argv) => serve(&name, &argv).map_err(|error| (error, argv)),
        Err(word) => Err((format!("{} is not UTF-8", word.to_string_lossy()), Vec::new())),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err((error, argv)) => {
            tell(&error, &argv);
            ExitCode::from(if is_exec(&argv) { EXEC_FAILED } else { FAILED })
        }
    }
}

/// Whether the first word that is no flag, nor a flag's value, is exec: runc has a code of its own for that.
fn is_exec(argv: &[String]) -> bool {
    const VALUED: [&str; 5] = ["log", "log-format", "root", "criu", "rootless"];
    let mut words = argv.iter();
    while let Some(word) = words.next() {
        match word.strip_prefix('-') {
            None => return word == "exec",
            Some(name) if VALUED.contains(&name.trim_start_matches('-')) => drop(words.next()),
            Some(_) => {}
        }
    }
    false
}

/// Asks until the daemon has heard all that it wants to know, then does what it says. What we made for a sandbox that did
/// not come about goes again.
fn serve(name: &str, argv: &[String]) -> Result<u8, String> {
    let mut standing = None;
    let outcome = follow(name, argv, &mut standing);
    if let Some(standing) = standing {
        standing.leave(!matches!(outcome, Ok(0)));
    }
    outcome
}

fn follow(name: &str, argv: &[String], standing: &mut Option<Standing>) -> Result<u8, String> {
    let cwd = env::current_dir().map_err(|error| format!("there is no working directory: {error}"))?;
    let cwd = cwd.into_os_string().into_string().map_err(|_| "the working directory is not UTF-8".to_string())?;
    let mut ask = json!({"name": name, "argv": argv, "cwd": cwd});
    let mut acts = false;
    loop {
        let answer = call(&ask, acts, standing)?;
        acts = answer["act"] == true;
        if !answer["state"].is_null() {
            ask["state"] = answer["state"].clone();
        }
        if let Some(standing) = standing.as_mut().filter(|_| answer["standing"] == true) {
            standing.stays();
        }
        make::write_pid(control::text(&answer, "pid_file"), standing)?;
        if let Some(path) = answer["want_text"].as_str().filter(|path| !path.is_empty()) {
            ask["text"] = json!(whole_text(path)?);
        } else if answer["stand_in"].is_object() {
            make::stand_in(&answer, standing)?;
        } else if let Some(runs) = answer["runs"].as_object().filter(|runs| !runs.is_empty()) {
            ask["runs"] = run_all(runs, &answer)?;
        } else if answer["wait"] == true {
            ask["code"] = json!(make::wait(standing)?);
            if !acts {
                return Ok(ask["code"].as_u64().unwrap_or(1) as u8);
            }
        } else if acts {
            // It has only said how to ask.
        } else if let Some(delay_s) = act::say(&answer)? {
            sleep(Duration::from_secs_f64(delay_s));
            ask["runs"] = Value::Null;
        } else if act::words(&answer["execute"]).is_empty() {
            return Ok(answer["code"].as_u64().unwrap_or(1) as u8);
        } else {
            return Err(act::become_program(&answer));
        }
    }
}

fn call(ask: &Value, acts: bool, standing: &mut Option<Standing>) -> Result<Value, String> {
    let root = make::root().map_err(|error| format!("cannot open /: {error}"))?;
    let mut fds = vec![("root".to_owned(), root)];
    if let Some(standing) = standing.as_mut().filter(|_| acts) {
        fds.append(&mut standing.handed_on());
    }
    daemon::ask(&Question { method: if acts { "oci.act" } else { "oci.ask" }, params: ask, fds, once: acts })
}

/// What a file holds that is ours alone, as /dev/fd/63 is; "-" is standard input.
fn whole_text(path: &str) -> Result<String, String> {
    let mut text = String::new();
    let read = match path {
        "-" => io::stdin().take(MAX_TEXT).read_to_string(&mut text),
        _ => File::open(path).and_then(|file| file.take(MAX_TEXT).read_to_string(&mut text)),
    };
    let name = if path == "-" { "standard input" } else { path };
    read.map_err(|error| format!("cannot read {name}: {error}"))?;
    Ok(text)
}

fn run_all(runs: &Map<String, Value>, answer: &Value) -> Result<Value, String> {
    act::hide_cgroup(answer)?;
    // Side by side: each is waited for only after the last has begun.
    let begin = |argv| act::begin(&act::words(argv), control::text(answer, "fallback"));
    let begun: Vec<_> = runs.iter().map(|(name, argv)| (name, begin(argv))).collect();
    begun
        .into_iter()
        .map(|(name, child)| Ok((name.clone(), act::end(child?)?)))
        .collect::<Result<Map<_, _>, _>>()
        .map(Value::Object)
}

/// What the daemon could not tell, because there is none: on standard error, and in the log that was asked for.
fn tell(message: &str, argv: &[String]) {
    if message.is_empty() {
        return;
    }
    eprintln!("drupe-oci: {message}");
    let Some(log) = flag(argv, "log") else { return };
    let line = match flag(argv, "log-format") {
        Some("json") => serde_json::json!({"level": "error", "msg": message}).to_string(),
        _ => format!("level=error msg={message:?}"),
    };
    // It was said already; a log that cannot be written is no further error.
    let _ = act::append(log, &format!("{line}\n"));
    let _ = io::stderr().flush();
}

/// The value of `--name V` or `--name=V`, with one dash or two.
fn flag<'a>(argv: &'a [String], name: &str) -> Option<&'a str> {
    argv.iter().enumerate().find_map(|(at, word)| {
        let bare = word.strip_prefix('-')?.trim_start_matches('-');
        match bare.strip_prefix(name)? {
            "" => argv.get(at + 1).map(String::as_str),
            rest => rest.strip_prefix('='),
        }
    })
}
