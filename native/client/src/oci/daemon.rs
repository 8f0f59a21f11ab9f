//! The daemon that answers us, begun when there is none.

use crate::control::{self, Question, Trouble};
use crate::home;
use serde_json::Value;
use std::env;
use std::process::{Command, Stdio};

const TRIES: u32 = 3;

pub fn ask(question: &Question) -> Result<Value, String> {
    let path = socket_path();
    for _ in 0..TRIES {
        match control::ask(&path, question) {
            Ok(answer) => return Ok(answer),
            Err(Trouble::Refused(why)) => return Err(why),
            Err(Trouble::Gone) => begin()?,
        }
    }
    Err(format!("the daemon at {path} does not answer"))
}

fn socket_path() -> String {
    let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
    set("DRUPE_SOCKET")
        .unwrap_or_else(|| format!("{}/drupe.sock", set("DRUPE_RUN").unwrap_or_else(|| "/run/drupe".into())))
}

/// Python knows how; it returns once the daemon answers, and says why where it does not come up.
fn begin() -> Result<(), String> {
    let home = home::directory().ok_or("no daemon answers, and there is no Python beside this program to start one")?;
    let mut starter = Command::new(home.join("python"));
    starter.args(["-P", "-m", "drupe.api.daemon"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let done = starter.output().map_err(|error| format!("cannot start {}: {error}", home.join("python").display()))?;
    match done.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
    }
}
