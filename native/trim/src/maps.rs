//! The list of this process's mappings (proc_pid_maps(5)).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Opened while it can be: later this process has another root, without /proc.
#[derive(Clone)]
pub struct Maps {
    file: Arc<File>,
}

impl Maps {
    pub fn open() -> io::Result<Self> {
        Ok(Self { file: Arc::new(File::open("/proc/self/maps")?) })
    }

    pub fn text(&self) -> String {
        let mut text = Vec::new();
        let mut piece = vec![0u8; 64 << 10];
        while let Ok(got @ 1..) = self.file.read_at(&mut piece, text.len() as u64) {
            text.extend_from_slice(&piece[..got]);
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}
