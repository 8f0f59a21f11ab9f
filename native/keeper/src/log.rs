//! Log files of tasks: the CRI format and Docker's json-file, rotated by size.

use crate::clock;
use crate::protocol::{Failure, Fields, Outcome};
use serde_json::{json, Value};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

/// Lines longer than this are split, as containerd and Docker do.
const MAX_LINE: usize = 16 * 1024;
const STREAMS: [&str; 2] = ["stdout", "stderr"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Cri,
    JsonFile,
}

pub struct Log {
    path: String,
    format: Format,
    /// 0: no limit.
    max_bytes: u64,
    /// All files counted, the current one included.
    max_files: u64,
    file: File,
    size: u64,
    /// Size at which to rotate next; grows when a rotation fails.
    rotate_at: u64,
    /// What came after the last newline, per stream.
    partial: [Vec<u8>; 2],
    /// Lines lost since the log was opened, and those of them that no line of the log tells of yet.
    pub dropped: u64,
    unreported: u64,
    cause: String,
}

fn open(path: &str) -> io::Result<(File, u64)> {
    // O_NONBLOCK: the open of a FIFO without reader must not wait.
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o640).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path)?;
    let size = file.metadata()?.size();
    Ok((file, size))
}

impl Log {
    pub fn from_fields(mut fields: Fields) -> Outcome<Log> {
        let path: String = fields.need("path")?;
        let format = match fields.take::<String>("format")?.as_deref() {
            None | Some("cri") => Format::Cri,
            Some("json-file") => Format::JsonFile,
            Some(other) => return Err(Failure::invalid(format!("unknown log format {other:?}"))),
        };
        let max_bytes = fields.take("max_bytes")?.unwrap_or(0);
        let max_files = fields.take("max_files")?.unwrap_or(1);
        fields.finish()?;
        let (file, size) = open(&path).map_err(|error| Failure::io(format!("cannot open log {path}"), &error))?;
        Ok(Log {
            path,
            format,
            max_bytes,
            max_files,
            file,
            size,
            rotate_at: max_bytes,
            partial: [Vec::new(), Vec::new()],
            dropped: 0,
            unreported: 0,
            cause: String::new(),
        })
    }

    /// The fields from which it was made.
    pub fn to_json(&self) -> Value {
        let format = if self.format == Format::Cri { "cri" } else { "json-file" };
        json!({"path": self.path, "format": format, "max_bytes": self.max_bytes, "max_files": self.max_files})
    }

    /// Opens the file anew under its path (after an outside rotation).
    pub fn reopen(&mut self) -> io::Result<()> {
        (self.file, self.size) = open(&self.path)?;
        self.rotate_at = self.max_bytes;
        Ok(())
    }

    /// Adds output of one stream (0: stdout, 1: stderr). Never fails: what cannot be written is counted.
    pub fn write(&mut self, stream: usize, data: &[u8]) {
        let time = clock::rfc3339_now();
        let mut lines = Lines { text: Vec::with_capacity(data.len() + data.len() / 4 + 256), count: 0 };
        let mut partial = std::mem::take(&mut self.partial[stream]);
        let mut rest = data;
        while !rest.is_empty() {
            let newline = rest.iter().position(|byte| *byte == b'\n');
            let room = MAX_LINE - partial.len();
            let (piece, ends) = match newline {
                Some(place) if place <= room => (&rest[..place], true),
                _ if rest.len() > room => (&rest[..room], false),
                _ => {
                    partial.extend_from_slice(rest);
                    break;
                }
            };
            rest = &rest[piece.len() + usize::from(ends)..];
            if partial.is_empty() {
                self.add(&mut lines, &time, stream, piece, ends);
            } else {
                partial.extend_from_slice(piece);
                self.add(&mut lines, &time, stream, &partial, ends);
                partial.clear();
            }
        }
        if !partial.is_empty() {
            self.partial[stream] = partial;
        }
        self.flush(&mut lines);
    }

    /// Writes what came after the last newlines, as whole lines.
    pub fn finish(&mut self) {
        let time = clock::rfc3339_now();
        for stream in 0..2 {
            let partial = std::mem::take(&mut self.partial[stream]);
            if !partial.is_empty() {
                let mut lines = Lines { text: Vec::new(), count: 0 };
                self.add_line(&mut lines, &time, stream, &partial, true, false);
                self.flush(&mut lines);
            }
        }
    }

    fn add(&mut self, lines: &mut Lines, time: &str, stream: usize, line: &[u8], ends: bool) {
        self.add_line(lines, time, stream, line, ends, ends);
    }

    /// full: CRI's tag F instead of P. newline: json-file says `\n` at the end of the text.
    fn add_line(&mut self, lines: &mut Lines, time: &str, stream: usize, line: &[u8], full: bool, newline: bool) {
        let before = lines.text.len();
        match self.format {
            Format::Cri => {
                let tag = if full { " F " } else { " P " };
                for part in [time.as_bytes(), b" ", STREAMS[stream].as_bytes(), tag.as_bytes(), line, b"\n"] {
                    lines.text.extend_from_slice(part);
                }
            }
            Format::JsonFile => {
                let mut text = String::from_utf8_lossy(line).into_owned();
                if newline {
                    text.push('\n');
                }
                lines.text.extend_from_slice(b"{\"log\":");
                // Writing a string to memory cannot fail.
                let _ = serde_json::to_writer(&mut lines.text, &text);
                let rest = format!(",\"stream\":\"{}\",\"time\":\"{time}\"}}\n", STREAMS[stream]);
                lines.text.extend_from_slice(rest.as_bytes());
            }
        }
        lines.count += 1;
        if self.max_bytes > 0 && self.size + lines.text.len() as u64 > self.rotate_at {
            // The new line belongs to the next file, unless this one has none yet.
            if before > 0 || self.size > 0 {
                let line = lines.text.split_off(before);
                lines.count -= 1;
                self.flush(lines);
                self.rotate();
                lines.text = line;
                lines.count = 1;
            }
        }
    }

    fn flush(&mut self, lines: &mut Lines) {
        if lines.count == 0 {
            return;
        }
        if self.unreported > 0 {
            self.report_dropped();
        }
        match self.append(&lines.text) {
            Ok(()) => {}
            Err((written, error)) => {
                let kept = lines.text[..written].iter().filter(|byte| **byte == b'\n').count() as u64;
                self.dropped += lines.count - kept;
                self.unreported += lines.count - kept;
                self.cause = error.to_string();
            }
        }
        lines.text.clear();
        lines.count = 0;
    }

    /// Appends all of `text` or its first lines: half a line is taken back. The error says how many bytes stayed.
    fn append(&mut self, text: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut written = 0;
        while written < text.len() {
            match self.file.write(&text[written..]) {
                Ok(0) => return Err(self.take_back(text, written, io::ErrorKind::WriteZero.into())),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.take_back(text, written, error)),
            }
        }
        self.size += written as u64;
        Ok(())
    }

    fn take_back(&mut self, text: &[u8], written: usize, error: io::Error) -> (usize, io::Error) {
        let whole = text[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |place| place + 1);
        if let Ok(data) = self.file.metadata() {
            let _ = self.file.set_len(data.size().saturating_sub((written - whole) as u64));
        }
        self.size += whole as u64;
        (whole, error)
    }

    fn report_dropped(&mut self) {
        let text = format!("drupe: {} lines of this log were lost: {}", self.unreported, self.cause);
        let mut lines = Lines { text: Vec::new(), count: 0 };
        let reported = std::mem::take(&mut self.unreported);
        self.add_line(&mut lines, &clock::rfc3339_now(), 1, text.as_bytes(), true, true);
        if self.append(&lines.text).is_err() {
            self.unreported = reported;
        }
    }

    fn rotate(&mut self) {
        match self.shift_files() {
            Ok((file, size)) => {
                (self.file, self.size) = (file, size);
                self.rotate_at = self.max_bytes;
            }
            // The old file goes on; try again after as much again.
            Err(_) => self.rotate_at = self.size + self.max_bytes,
        }
    }

    fn shift_files(&self) -> io::Result<(File, u64)> {
        if self.max_files <= 1 {
            self.file.set_len(0)?;
            return open(&self.path);
        }
        for number in (1..self.max_files - 1).rev() {
            match fs::rename(format!("{}.{number}", self.path), format!("{}.{}", self.path, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, format!("{}.1", self.path))?;
        open(&self.path)
    }
}

struct Lines {
    text: Vec<u8>,
    count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(String);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("drupe-log-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Scratch(path.to_string_lossy().into_owned())
        }

        fn log(&self, format: &str, max_bytes: u64, max_files: u64) -> Log {
            let fields = json!({"path": self.path(), "format": format, "max_bytes": max_bytes, "max_files": max_files});
            let Value::Object(map) = fields else { unreachable!() };
            Log::from_fields(Fields(map)).unwrap()
        }

        fn path(&self) -> String {
            format!("{}/log", self.0)
        }

        /// (stream, tag, text) of each line.
        fn cri(&self) -> Vec<(String, String, String)> {
            let text = fs::read_to_string(self.path()).unwrap();
            let lines = text.lines().map(|line| {
                let parts: Vec<&str> = line.splitn(4, ' ').collect();
                assert_eq!(parts[0].len(), 30);
                (parts[1].into(), parts[2].into(), parts[3].into())
            });
            lines.collect()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn line(stream: &str, tag: &str, text: &str) -> (String, String, String) {
        (stream.into(), tag.into(), text.into())
    }

    #[test]
    fn cri_lines_across_chunks() {
        let scratch = Scratch::new("cri");
        let mut log = scratch.log("cri", 0, 1);
        log.write(0, b"one\ntw");
        log.write(1, b"err\n\n");
        log.write(0, b"o\nrest");
        log.finish();
        let expected = [
            line("stdout", "F", "one"),
            line("stderr", "F", "err"),
            line("stderr", "F", ""),
            line("stdout", "F", "two"),
            line("stdout", "F", "rest"),
        ];
        assert_eq!(scratch.cri(), expected);
    }

    #[test]
    fn long_lines_are_split() {
        let scratch = Scratch::new("long");
        let mut log = scratch.log("cri", 0, 1);
        let text = "x".repeat(2 * MAX_LINE + 5);
        for chunk in text.as_bytes().chunks(1000) {
            log.write(0, chunk);
        }
        log.write(0, b"\n");
        let lines = scratch.cri();
        let tags: Vec<&str> = lines.iter().map(|line| line.1.as_str()).collect();
        assert_eq!(tags, ["P", "P", "F"]);
        assert_eq!(lines.iter().map(|line| line.2.as_str()).collect::<String>(), text);
    }

    #[test]
    fn line_of_exactly_the_limit_is_one_line() {
        let scratch = Scratch::new("exact");
        let mut log = scratch.log("cri", 0, 1);
        log.write(0, format!("{}\nnext\n", "x".repeat(MAX_LINE)).as_bytes());
        assert_eq!(scratch.cri().len(), 2);
        log.write(0, "y".repeat(MAX_LINE).as_bytes());
        log.write(0, b"\n");
        assert_eq!(scratch.cri()[2], line("stdout", "F", &"y".repeat(MAX_LINE)));
    }

    #[test]
    fn json_file_is_json() {
        let scratch = Scratch::new("json");
        let mut log = scratch.log("json-file", 0, 1);
        log.write(1, b"a \"quote\" \x01\xff\nno end");
        log.finish();
        let text = fs::read_to_string(scratch.path()).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["log"], "a \"quote\" \u{1}\u{fffd}\n");
        assert_eq!(lines[0]["stream"], "stderr");
        assert_eq!(lines[1]["log"], "no end");
    }

    #[test]
    fn rotates_by_size_and_loses_nothing() {
        let scratch = Scratch::new("rotate");
        let mut log = scratch.log("cri", 400, 3);
        for number in 0..20 {
            log.write(0, format!("line {number}\n").as_bytes());
        }
        // 45 or 46 bytes a line: 8 lines a file, of which three stay.
        let count = |suffix: &str| {
            let text = fs::read_to_string(format!("{}{suffix}", scratch.path())).unwrap();
            assert!(text.len() <= 400);
            (text.lines().count(), text.lines().next().unwrap().rsplit(' ').next().unwrap().to_string())
        };
        assert_eq!(count(".2"), (8, "0".into()));
        assert_eq!(count(".1"), (8, "8".into()));
        assert_eq!(count(""), (4, "16".into()));
        for number in 20..40 {
            log.write(0, format!("line {number}\n").as_bytes());
        }
        assert!(fs::metadata(format!("{}.3", scratch.path())).is_err());
    }

    #[test]
    fn one_file_is_emptied() {
        let scratch = Scratch::new("single");
        let mut log = scratch.log("cri", 100, 1);
        for number in 0..9 {
            log.write(0, format!("line {number}\n").as_bytes());
        }
        assert_eq!(scratch.cri().last().unwrap().2, "line 8");
        assert!(fs::metadata(scratch.path()).unwrap().len() <= 100);
    }

    #[test]
    fn full_disk_is_counted_and_reported() {
        let scratch = Scratch::new("full");
        let mut log = scratch.log("cri", 0, 1);
        log.write(0, b"before\n");
        let good = std::mem::replace(&mut log.file, OpenOptions::new().append(true).open("/dev/full").unwrap());
        log.write(0, b"lost 1\nlost 2\n");
        log.write(0, b"lost 3\n");
        assert_eq!(log.dropped, 3);
        log.file = good;
        log.write(0, b"after\n");
        let lines = scratch.cri();
        assert_eq!(lines[0].2, "before");
        assert!(lines[1].2.starts_with("drupe: 3 lines of this log were lost: No space left"), "{}", lines[1].2);
        assert_eq!(lines[2].2, "after");
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn reopens() {
        let scratch = Scratch::new("reopen");
        let mut log = scratch.log("cri", 0, 1);
        log.write(0, b"old\n");
        fs::rename(scratch.path(), format!("{}.old", scratch.path())).unwrap();
        log.reopen().unwrap();
        log.write(0, b"new\n");
        assert_eq!(scratch.cri(), [line("stdout", "F", "new")]);
    }
}
