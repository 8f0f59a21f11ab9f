//! What the daemon says is to be done.

use crate::control::text;
use drupe_sys::{cgroup, fd, mount, process};
use serde_json::{json, Value};
use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Texts are given at numbers that no --preserve-fds reaches.
const FIRST_TEXT: i32 = 300;

/// A list of texts.
pub fn words(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect()
}

/// Writes and prints; returns after how many seconds to ask again.
pub fn say(answer: &Value) -> Result<Option<f64>, String> {
    for file in answer["write"].as_array().into_iter().flatten() {
        let (path, mode) = (text(file, "path"), file["mode"].as_u64().unwrap_or(0o600) as u32);
        let made = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        made.and_then(|mut made| made.write_all(text(file, "text").as_bytes()))
            .map_err(|error| format!("cannot write {path}: {error}"))?;
    }
    let log = text(answer, "log");
    if !log.is_empty() {
        append(log, text(answer, "log_line")).map_err(|error| format!("cannot write {log}: {error}"))?;
    }
    let mut stdout = io::stdout();
    let said = stdout.write_all(text(answer, "stdout").as_bytes()).and_then(|()| stdout.flush());
    said.map_err(|error| format!("cannot write standard output: {error}"))?;
    eprint!("{}", text(answer, "stderr"));
    Ok(answer["again_s"].as_f64())
}

pub fn append(path: &str, text: &str) -> io::Result<()> {
    OpenOptions::new().append(true).create(true).mode(0o644).open(path)?.write_all(text.as_bytes())
}

/// crun refuses a cgroup v2 tree beside v1: a mount namespace of our own goes without. Its mounts still propagate both ways.
pub fn hide_cgroup(answer: &Value) -> Result<(), String> {
    if answer["hide_cgroup"] != true || !cgroup::is_hybrid() {
        return Ok(());
    }
    let hidden = mount::unshare(libc::CLONE_NEWNS).and_then(|()| cgroup::hide_unified());
    hidden.map_err(|error| format!("cannot hide /sys/fs/cgroup/unified: {error}"))
}

pub fn begin(argv: &[String], fallback: &str) -> Result<Child, String> {
    let program = present(&argv[0], fallback);
    let mut command = Command::new(program);
    command.args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().map_err(|error| format!("cannot start {program}: {error}"))
}

pub fn end(child: Child) -> Result<Value, String> {
    let done = child.wait_with_output().map_err(|error| format!("cannot wait: {error}"))?;
    let code = done.status.code().unwrap_or_else(|| 128 + done.status.signal().unwrap_or(0));
    let (stdout, stderr) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    Ok(json!({"code": code, "stdout": stdout, "stderr": stderr}))
}

/// Returns only when it failed.
pub fn become_program(answer: &Value) -> String {
    match prepare(answer) {
        Ok((program, argv)) => {
            // Rust ignores it from the start; a container would inherit that.
            process::default_signal(libc::SIGPIPE);
            format!("cannot start {program}: {}", process::exec(Path::new(&program), &argv))
        }
        Err(error) => error,
    }
}

/// The program gives its streams to the user that it becomes, be they the host's /dev/null. Who may not make devices owns
/// none either.
fn own_nulls() -> io::Result<()> {
    let of_host: Vec<i32> = (0..3).filter(|number| fd::is_null(*number)).collect();
    match fd::own_null() {
        Ok(null) => of_host.iter().try_for_each(|number| fd::redirect(&null, *number)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}

fn prepare(answer: &Value) -> Result<(String, Vec<CString>), String> {
    if answer["own_nulls"] == true && (0..3).any(fd::is_null) {
        own_nulls().map_err(|error| format!("cannot make a null device: {error}"))?;
    }
    hide_cgroup(answer)?;
    let execute = words(&answer["execute"]);
    let no_text = |_| "an argument holds a NUL".to_string();
    let argv = with_texts(&execute, answer)?.into_iter().map(|word| CString::new(word).map_err(no_text));
    let argv = argv.collect::<Result<Vec<_>, _>>()?;
    Ok((present(&execute[0], text(answer, "fallback")).to_owned(), argv))
}

/// The words, those that name a text replaced by a path to it.
pub fn with_texts(words: &[String], answer: &Value) -> Result<Vec<String>, String> {
    let given = |word: &String| match answer["texts"][word].as_str() {
        Some(text) => given_text(text).map_err(|error| format!("cannot hand on a text: {error}")),
        None => Ok(word.clone()),
    };
    words.iter().map(given).collect()
}

fn given_text(text: &str) -> io::Result<String> {
    fd::inherited_text(text.as_bytes(), FIRST_TEXT).map(|number| format!("/proc/self/fd/{number}"))
}

/// The daemon holds a copy of the program that starts faster; it goes with the daemon.
pub fn present<'a>(program: &'a str, fallback: &'a str) -> &'a str {
    match fallback.is_empty() || !program.starts_with("/proc/") || Path::new(program).exists() {
        true => program,
        false => fallback,
    }
}
