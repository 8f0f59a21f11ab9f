//! execve(2): scripts, programs, their interpreters, and the first stack.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Registers, Result};
use drupe_appkernel_vfs::cred::MAY_EXEC;
use drupe_appkernel_vfs::inode::Use;
use drupe_appkernel_vfs::mount::{MS_NOEXEC, MS_NOSUID};
use drupe_appkernel_vfs::{FileType, How, OpenFile, OpenFlags, Path};

use crate::auxv::{self, Stack};
use crate::clone::copied;
use crate::elf::{self, Elf, Segment};
use crate::kernel::{Done, Kernel, Program};
use crate::mm::{Area, Mm, PAGE, PROT_EXEC, PROT_READ, PROT_WRITE, STACK};
use crate::platform::{MemoryOp, SpaceId, ThreadId};
use crate::privileges::Privileges;
use crate::seat::{Seat, AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW};
use crate::task::{Pid, Tid};

const LIMIT_STACK: usize = 3;
const STACK_BYTES: u64 = 8 << 20;
/// Below what the program starts with, whatever the limit.
const STACK_LEAST_BYTES: u64 = 128 << 10;
const SCRIPT_LINE: usize = 256;
const MAX_SCRIPTS: u32 = 5;
/// Where programs that may lie anywhere go, before chance moves them.
const PIE_BASE: u64 = 0x5555_5555_4000;
const COPY_BYTES: usize = 1 << 20;
const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

/// A program, found and readable, with what it is to be given.
struct Image {
    path: Path,
    /// As the caller names it: of a script its own name, not the interpreter's.
    called: Vec<u8>,
    file: Arc<OpenFile>,
    elf: Elf,
    arguments: Vec<Vec<u8>>,
    interpreter: Option<(Arc<OpenFile>, Elf)>,
}

struct Loaded {
    mm: Mm,
    registers: Registers,
}

fn read_at(seat: &Seat, file: &OpenFile, offset: u64, size: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while filled < size {
        match file.file().read(&seat.context(), offset + filled as u64, &mut bytes[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn read_elf(seat: &Seat, file: &OpenFile, header: &[u8]) -> Result<Elf> {
    let (at, size) = elf::table(header)?;
    let table = read_at(seat, file, at, size)?;
    if table.len() < size {
        return Err(Errno::NOEXEC);
    }
    elf::parse(header, &table)
}

fn open_program(seat: &Seat, path: &Path) -> Result<Arc<OpenFile>> {
    let metadata = path.inode().metadata()?;
    if metadata.kind() != FileType::Regular || path.mount.has(MS_NOEXEC) {
        return Err(Errno::ACCES);
    }
    seat.credentials.check(&metadata, MAY_EXEC)?;
    let flags = OpenFlags::default();
    let file = path.inode().open(&seat.context(), flags)?;
    Ok(OpenFile::new(file, Some(path.clone()), flags))
}

fn find(seat: &Seat, start: &Path, path: &[u8]) -> Result<Path> {
    let context = seat.context();
    seat.view(&context).walk(start, path, How::FOLLOW)
}

/// A program by its path, or by its name in the directories of PATH, as execvpe(3): ENOENT, or EACCES when one is there
/// that may not be executed.
fn search(seat: &Seat, program: &Program) -> Result<(Path, Vec<u8>)> {
    let name = &program.path;
    if name.contains(&b'/') {
        return Ok((find(seat, &seat.cwd, name)?, name.clone()));
    }
    let variable = program.environment.iter().find_map(|entry| entry.strip_prefix(b"PATH="));
    let mut refused = Errno::NOENT;
    for directory in variable.unwrap_or(DEFAULT_PATH).split(|&byte| byte == b':') {
        let whole = [if directory.is_empty() { b"." } else { directory }, b"/", name].concat();
        match find(seat, &seat.cwd, &whole).and_then(|path| open_program(seat, &path).map(|_| path)) {
            Ok(path) => return Ok((path, whole)),
            Err(Errno::ACCES) => refused = Errno::ACCES,
            Err(_) => {}
        }
    }
    Err(refused)
}

/// The interpreter and argument of a `#!` line. ENOEXEC.
fn script(header: &[u8]) -> Result<(Vec<u8>, Option<Vec<u8>>)> {
    let line = &header[2..];
    let end = line.iter().position(|&byte| byte == b'\n');
    let line = &line[..end.unwrap_or(line.len())];
    let blank = |byte: &u8| *byte == b' ' || *byte == b'\t';
    let trimmed = line.trim_ascii();
    let (program, rest) = match trimmed.iter().position(blank) {
        Some(at) => (&trimmed[..at], trimmed[at..].trim_ascii()),
        // Without an end of the line, the name may have been cut.
        None if end.is_none() && header.len() >= SCRIPT_LINE => return Err(Errno::NOEXEC),
        None => (trimmed, &[][..]),
    };
    if program.is_empty() {
        return Err(Errno::NOEXEC);
    }
    Ok((program.to_vec(), (!rest.is_empty()).then(|| rest.to_vec())))
}

fn is_script(seat: &Seat, path: &Path) -> Result<bool> {
    let file = open_program(seat, path)?;
    Ok(read_at(seat, &file, 0, 2)? == b"#!")
}

/// Follow scripts to a program, and find its interpreter.
fn resolve(seat: &Seat, mut path: Path, mut name: Vec<u8>, mut arguments: Vec<Vec<u8>>) -> Result<Image> {
    let called = name.clone();
    for _ in 0..MAX_SCRIPTS {
        let file = open_program(seat, &path)?;
        let header = read_at(seat, &file, 0, SCRIPT_LINE)?;
        if !header.starts_with(b"#!") {
            let elf = read_elf(seat, &file, &header)?;
            let interpreter = elf.interpreter.map(|(at, size)| interpreter(seat, &file, at, size)).transpose()?;
            return Ok(Image { path, called, file, elf, arguments, interpreter });
        }
        let (program, argument) = script(&header)?;
        let rest = if arguments.is_empty() { Vec::new() } else { arguments.split_off(1) };
        arguments = std::iter::once(program.clone()).chain(argument).chain([name]).chain(rest).collect();
        path = find(seat, &seat.cwd, &program)?;
        name = program;
    }
    Err(Errno::LOOP)
}

fn interpreter(seat: &Seat, file: &OpenFile, at: u64, size: u64) -> Result<(Arc<OpenFile>, Elf)> {
    let mut name = read_at(seat, file, at, size as usize)?;
    if name.pop() != Some(0) {
        return Err(Errno::NOEXEC);
    }
    let path = find(seat, &seat.root, &name)?;
    let file = open_program(seat, &path)?;
    let header = read_at(seat, &file, 0, elf::HEADER_BYTES)?;
    let elf = read_elf(seat, &file, &header).map_err(|_| Errno::LIBBAD)?;
    Ok((file, elf))
}

impl Kernel {
    fn random_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.host.random(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Fill a fresh space with a program.
    fn load(
        &mut self,
        seat: &Seat,
        image: &Image,
        environment: &[Vec<u8>],
        privileges: &Privileges,
        stack_limit: u64,
        (space, thread): (SpaceId, ThreadId),
    ) -> Result<Loaded> {
        let mut mm = Mm::new(space, self.platform.address_end());
        mm.top -= (self.random_u64() & 0xf_ffff) * PAGE;
        let bias = if image.elf.relocatable {
            let (start, _) = image.elf.span();
            (PIE_BASE + (self.random_u64() & 0xff_ffff) * PAGE).wrapping_sub(start)
        } else {
            0
        };
        let mut ops = Vec::new();
        self.map_program(seat, &mut mm, (thread, &mut ops), &image.file, &image.elf, bias)?;
        let (_, end) = image.elf.span();
        mm.brk_start = end.wrapping_add(bias) + (self.random_u64() & 0x1fff) * PAGE;
        mm.brk = mm.brk_start;
        let (entry, base) = match &image.interpreter {
            None => (image.elf.entry.wrapping_add(bias), 0),
            Some((file, elf)) => {
                let (start, end) = elf.span();
                let base = if elf.relocatable { mm.place(end - start)?.wrapping_sub(start) } else { 0 };
                self.map_program(seat, &mut mm, (thread, &mut ops), file, elf, base)?;
                (elf.entry.wrapping_add(base), base)
            }
        };
        let stack = self.first_stack(seat, image, environment, privileges, &mm, (bias, base));
        ops.push(map_stack(&mut mm, &image.elf, (stack.pointer, stack_limit)));
        self.platform.change(thread, &ops)?;
        self.clear_tails(&mm, &image.elf, bias)?;
        if let Some((_, elf)) = &image.interpreter {
            self.clear_tails(&mm, elf, base)?;
        }
        self.platform.write(space, stack.pointer, &stack.bytes)?;
        (mm.auxiliary, mm.texts) = (stack.auxiliary, stack.texts);
        let registers = Registers { rip: entry, rsp: stack.pointer, eflags: 0x202, ..Registers::default() };
        Ok(Loaded { mm, registers })
    }

    fn first_stack(
        &self,
        seat: &Seat,
        image: &Image,
        environment: &[Vec<u8>],
        privileges: &Privileges,
        mm: &Mm,
        (bias, base): (u64, u64),
    ) -> Stack {
        let mut random = [0; 16];
        self.host.random(&mut random);
        let top = mm.end - PAGE - (self.random_u64() & 0xff) * 16;
        let processor = self.host.processor();
        let credentials = &seat.credentials;
        let mut auxiliary = vec![
            (auxv::AT_PHDR, image.elf.headers_address.wrapping_add(bias)),
            (auxv::AT_PHENT, 56),
            (auxv::AT_PHNUM, image.elf.header_count),
            (auxv::AT_BASE, base),
            (auxv::AT_FLAGS, 0),
            (auxv::AT_ENTRY, image.elf.entry.wrapping_add(bias)),
            (auxv::AT_UID, privileges.ids.uid.into()),
            (auxv::AT_EUID, credentials.uid.into()),
            (auxv::AT_GID, privileges.ids.gid.into()),
            (auxv::AT_EGID, credentials.gid.into()),
            (auxv::AT_SECURE, privileges.secure.into()),
            (auxv::AT_HWCAP, processor.hwcap),
            (auxv::AT_HWCAP2, processor.hwcap2),
            (auxv::AT_CLKTCK, 100),
            (auxv::AT_MINSIGSTKSZ, processor.signal_stack_bytes),
        ];
        if self.platform.vdso() != 0 {
            auxiliary.push((auxv::AT_SYSINFO_EHDR, self.platform.vdso()));
        }
        auxv::build(top, &image.arguments, environment, &auxiliary, random, &image.called)
    }

    /// Zeros from the end of a segment's bytes to the end of their last page.
    fn clear_tails(&self, mm: &Mm, elf: &Elf, bias: u64) -> Result<()> {
        for segment in &elf.segments {
            let (_, file_end, _) = segment.pages();
            let data_end = segment.address + segment.file_size;
            let writable = segment.protection & PROT_WRITE != 0;
            if writable && segment.memory_size > segment.file_size && data_end < file_end {
                let zeros = vec![0; (file_end - data_end) as usize];
                self.platform.write(mm.space, data_end.wrapping_add(bias), &zeros)?;
            }
        }
        Ok(())
    }

    fn map_program(
        &mut self,
        seat: &Seat,
        mm: &mut Mm,
        (thread, ops): (ThreadId, &mut Vec<MemoryOp>),
        file: &Arc<OpenFile>,
        elf: &Elf,
        bias: u64,
    ) -> Result<()> {
        let (start, end) = elf.span();
        let (start, end) = (start.wrapping_add(bias), end.wrapping_add(bias));
        if start >= end || end > mm.end || start < crate::mm::LOWEST || !mm.is_free(start, end) {
            return Err(Errno::NOMEM);
        }
        for segment in &elf.segments {
            self.map_segment(seat, mm, (thread, ops), file, segment, bias)?;
        }
        Ok(())
    }

    fn map_segment(
        &mut self,
        seat: &Seat,
        mm: &mut Mm,
        (thread, ops): (ThreadId, &mut Vec<MemoryOp>),
        file: &Arc<OpenFile>,
        segment: &Segment,
        bias: u64,
    ) -> Result<()> {
        let (start, file_end, end) = segment.pages();
        let moved = |at: u64| at.wrapping_add(bias);
        let (address, protection, shared) = (moved(start), segment.protection, false);
        let from_file = file_end - start;
        let offset = segment.offset & !(PAGE - 1);
        if segment.file_size > 0 {
            match file.file().mapping(offset, from_file, false) {
                Ok(mapping) => ops.push(MemoryOp::MapFile {
                    address,
                    size: from_file,
                    protection,
                    shared,
                    file: mapping.host,
                    offset: mapping.offset,
                }),
                Err(_) => self.copy_segment(seat, mm.space, thread, file, (address, from_file, protection), offset)?,
            }
            let area =
                Area { end: moved(file_end), protection, shared, file: Some((Arc::clone(file), offset)), name: "" };
            mm.insert(address, area);
        }
        if end > file_end || segment.file_size == 0 {
            let address = if segment.file_size == 0 { address } else { moved(file_end) };
            ops.push(MemoryOp::MapAnonymous { address, size: moved(end) - address, protection, shared });
            mm.insert(address, Area { end: moved(end), protection, shared, file: None, name: "" });
        }
        Ok(())
    }

    fn copy_segment(
        &mut self,
        seat: &Seat,
        space: SpaceId,
        thread: ThreadId,
        file: &OpenFile,
        (address, size, protection): (u64, u64, u32),
        offset: u64,
    ) -> Result<()> {
        let writable = protection | PROT_READ | PROT_WRITE;
        self.platform
            .change(thread, &[MemoryOp::MapAnonymous { address, size, protection: writable, shared: false }])?;
        let mut done = 0;
        while done < size {
            let bytes = read_at(seat, file, offset + done, COPY_BYTES.min((size - done) as usize))?;
            if bytes.is_empty() {
                break;
            }
            self.platform.write(space, address + done, &bytes)?;
            done += bytes.len() as u64;
        }
        self.platform.change(thread, &[MemoryOp::Protect { address, size, protection }])
    }

    /// Replace the task's program. Until the program is loaded nothing of the old one is touched.
    fn exec(
        &mut self,
        tid: Tid,
        path: Path,
        name: Vec<u8>,
        arguments: Vec<Vec<u8>>,
        environment: Vec<Vec<u8>>,
    ) -> Result<()> {
        let mut seat = self.seat(tid)?;
        let image = resolve(&seat, path, name, arguments)?;
        // A first process was given what it is to have.
        let first = self.thread(tid)? == ThreadId(u32::MAX);
        let privileges = if first { Privileges::kept(self.process(tid)?) } else { self.privileges(tid, &image.path)? };
        seat.credentials = privileges.credentials.clone();
        let running = Arc::new(Use::running(&image.path)?);
        let (space, thread) = self.empty_space(tid)?;
        self.platform.set_lane(space, self.process(tid)?.lane);
        let stack_limit = self.process(tid)?.limits[LIMIT_STACK].0;
        let loaded = match self.load(&seat, &image, &environment, &privileges, stack_limit, (space, thread)) {
            Ok(loaded) => loaded,
            Err(errno) => {
                self.platform.end_space(space);
                return Err(errno);
            }
        };
        self.platform.reset(thread, &loaded.registers)?;
        self.process_mut(tid)?.running = Some(running);
        self.replace(tid, privileges, &image, loaded, thread)
    }

    /// Who the process will be. Set-id bits and capabilities of files count where nothing forbids them.
    fn privileges(&self, tid: Tid, path: &Path) -> Result<Privileges> {
        let (process, metadata) = (self.process(tid)?, path.inode().metadata()?);
        let trusted = !process.no_new_privileges && !path.mount.has(MS_NOSUID);
        Ok(Privileges::after(process, path, metadata.mode, (metadata.uid, metadata.gid), trusted))
    }

    fn replace(
        &mut self,
        tid: Tid,
        privileges: Privileges,
        image: &Image,
        loaded: Loaded,
        thread: ThreadId,
    ) -> Result<()> {
        let pid = self.pid(tid);
        self.end_other_threads(tid);
        let id = self.fresh_mm();
        let space = loaded.mm.space;
        self.mms.insert(id, loaded.mm);
        self.account(pid);
        let old = std::mem::replace(&mut self.process_mut(tid)?.mm, id);
        self.leave_thread(tid);
        self.release_mm(self.container_of(pid).unwrap_or(0), old);
        // The leader's number stays, whichever thread has called.
        let mut task = self.tasks.tasks.remove(&tid).ok_or(Errno::SRCH)?;
        (task.tid, task.thread, task.space, task.trapped) = (pid, thread, space, true);
        (task.alt_stack, task.clear_tid, task.robust_list) = (Default::default(), 0, 0);
        let name = task_name(image.called.rsplit(|byte| *byte == b'/').next().unwrap_or_default());
        task.name = name;
        self.has_changed = true;
        self.by_thread.insert(thread, pid);
        self.tasks.tasks.insert(pid, task);
        let process = self.process_mut(pid)?;
        process.threads = vec![pid];
        process.dumpable = !privileges.secure;
        if privileges.secure {
            process.death_signal = 0;
        }
        (process.credentials, process.ids) = (privileges.credentials, privileges.ids);
        process.executable = Some(image.path.clone());
        process.has_execed = true;
        process.posix_timers = Default::default();
        process.name = name;
        let mut actions = process.actions.lock().clone();
        actions.reset();
        process.actions = Arc::new(drupe_appkernel_vfs::sync::Mutex::new(actions));
        // A table that others use is theirs, with the locks that belong to it.
        if Arc::strong_count(&process.files) > 1 {
            process.files = copied(&process.files);
        }
        let closed = process.files.lock().remove_close_on_exec();
        closed.iter().try_for_each(|file| self.closed(pid, file))?;
        drop(closed);
        self.end_vfork(pid);
        self.watch_cpu_limit(pid);
        Ok(())
    }

    pub(crate) fn fresh_mm(&mut self) -> crate::mm::MmId {
        self.next_mm += 1;
        crate::mm::MmId(self.next_mm)
    }

    /// Load the first program of a process made by `Kernel::spawn`, and start it.
    pub(crate) fn exec_first(&mut self, pid: Pid, program: Program) -> Result<()> {
        let seat = self.seat(pid)?;
        let (path, name) = search(&seat, &program)?;
        self.exec(pid, path, name, program.arguments, program.environment)?;
        self.go_on(pid, None, Vec::new());
        Ok(())
    }
}

/// At first as large as RLIMIT_STACK lets it become, but for what is uncommon; it grows further where it is used (grow.rs).
fn map_stack(mm: &mut Mm, elf: &Elf, (pointer, limit): (u64, u64)) -> MemoryOp {
    let execute = if elf.executable_stack { PROT_EXEC } else { 0 };
    let (end, protection) = (mm.end - PAGE, PROT_READ | PROT_WRITE | execute);
    let least = end - pointer + STACK_LEAST_BYTES;
    let size = limit.min(STACK_BYTES).max(least) & !(PAGE - 1);
    let address = end - size;
    mm.insert(address, Area { end, protection, shared: false, file: None, name: STACK });
    MemoryOp::MapAnonymous { address, size, protection, shared: false }
}

pub(crate) fn task_name(name: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    let length = name.len().min(15);
    out[..length].copy_from_slice(&name[..length]);
    out
}

/// execve(2).
pub(crate) fn execve(kernel: &mut Kernel, tid: Tid, args: &[u64; 6]) -> Result<Done> {
    execveat(kernel, tid, &[crate::seat::AT_FDCWD as u64, args[0], args[1], args[2], 0, 0])
}

/// execveat(2).
pub(crate) fn execveat(kernel: &mut Kernel, tid: Tid, args: &[u64; 6]) -> Result<Done> {
    let [fd, path, arguments, environment, flags, _] = *args;
    if flags & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::INVAL);
    }
    let name = kernel.path_text(tid, path)?;
    let mut arguments = kernel.texts(tid, arguments)?;
    if arguments.is_empty() {
        arguments.push(Vec::new());
    }
    let environment = kernel.texts(tid, environment)?;
    let seat = kernel.seat(tid)?;
    let found = kernel.at(tid, &seat, fd, path, flags)?;
    if flags & AT_SYMLINK_NOFOLLOW != 0 && found.inode().kind() == FileType::Symlink {
        return Err(Errno::LOOP);
    }
    let by_descriptor = fd as i32 != AT_FDCWD && name.first() != Some(&b'/');
    if by_descriptor && kernel.closes_on_exec(tid, fd) && is_script(&seat, &found)? {
        return Err(Errno::NOENT); // its interpreter could not open it
    }
    let name = match by_descriptor {
        false => name,
        true if name.is_empty() => format!("/dev/fd/{fd}").into_bytes(),
        true => [format!("/dev/fd/{fd}/").as_bytes(), &name].concat(),
    };
    let pid = kernel.pid(tid);
    kernel.exec(tid, found, name, arguments, environment)?;
    kernel.executed(pid);
    Ok(Done::Gone)
}

impl Kernel {
    fn closes_on_exec(&self, tid: Tid, fd: u64) -> bool {
        self.process(tid).is_ok_and(|process| process.files.lock().close_on_exec(fd as i32).unwrap_or(false))
    }

    fn executed(&mut self, pid: Pid) {
        if let Ok(task) = self.task_mut(pid) {
            task.call = None;
        }
        self.go_on(pid, None, Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn script_lines_have_one_argument() {
        assert_eq!(script(b"#!/bin/sh\n"), Ok((b"/bin/sh".to_vec(), None)));
        assert_eq!(
            script(b"#! /usr/bin/env  python -x \n"),
            Ok((b"/usr/bin/env".to_vec(), Some(b"python -x".to_vec())))
        );
        assert_eq!(script(b"#!  \n"), Err(Errno::NOEXEC));
        let long = [b"#!/".as_slice(), &[b'a'; 253]].concat();
        assert_eq!(script(&long), Err(Errno::NOEXEC));
    }
}
