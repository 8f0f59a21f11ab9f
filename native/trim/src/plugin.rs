//! What QEMU calls.

use std::ffi::{c_char, c_int, c_uint, c_void, CStr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::code::Code;
use crate::maps::Maps;
use crate::quiet::Quiet;
use crate::saved::Saved;

/// Less than this is not worth that it is translated again.
const WORTH_BYTES: usize = 16 << 20;

type Id = u64;
type Call = extern "C" fn(Id);
type VcpuCall = extern "C" fn(Id, c_uint);

extern "C" {
    fn qemu_plugin_register_vcpu_init_cb(id: Id, call: VcpuCall);
    fn qemu_plugin_register_vcpu_idle_cb(id: Id, call: VcpuCall);
    fn qemu_plugin_register_vcpu_resume_cb(id: Id, call: VcpuCall);
    fn qemu_plugin_reset(id: Id, call: Call);
}

struct Trim {
    quiet: Quiet,
    code: Code,
    saved: Option<(Saved, Maps)>,
}

static TRIM: Mutex<Option<Trim>> = Mutex::new(None);

/// The version of the interface that this was written for.
#[no_mangle]
#[allow(non_upper_case_globals)]
pub static qemu_plugin_version: c_int = 1;

/// Called once, before there is a machine, and before QEMU gives up its rights and its root.
///
/// # Safety
/// `argv` has `argc` strings.
#[no_mangle]
pub unsafe extern "C" fn qemu_plugin_install(
    id: Id,
    _info: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    // SAFETY: the caller's promise.
    let words: Vec<&str> =
        unsafe { (0..argc as usize).filter_map(|n| CStr::from_ptr(*argv.add(n)).to_str().ok()).collect() };
    match (Maps::open(), Saved::parse(words.into_iter())) {
        (Ok(maps), Some(saved)) => {
            let (code, saved) = (Code::new(maps.clone()), Some((saved, maps)));
            *trim() = Some(Trim { quiet: Quiet::new(Instant::now()), code, saved });
            // SAFETY: a function of the program that loaded us, called as its header says.
            unsafe { qemu_plugin_register_vcpu_init_cb(id, made) };
            watch(id);
            0
        }
        _ => -1,
    }
}

/// A processor of the guest was made; it has not run, and the machine has its memory by now.
extern "C" fn made(_id: Id, _processor: c_uint) {
    let Some((saved, maps)) = trim().as_mut().and_then(|trim| trim.saved.take()) else { return };
    // SAFETY: nothing runs yet that could read it.
    if let Err(error) = unsafe { saved.map(&maps) } {
        eprintln!("the saved machine's memory cannot be shared: {error}");
        // SAFETY: ends the process, without what it would do at its end: it holds locks just now.
        unsafe { libc::_exit(1) }
    }
}

fn trim() -> MutexGuard<'static, Option<Trim>> {
    TRIM.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch(id: Id) {
    // SAFETY: functions of the program that loaded us, called as its header says.
    unsafe {
        qemu_plugin_register_vcpu_idle_cb(id, idle);
        qemu_plugin_register_vcpu_resume_cb(id, resumed);
    }
}

/// A processor of the guest has nothing to do.
extern "C" fn idle(id: Id, processor: c_uint) {
    if worth_it(processor) {
        // SAFETY: as above; this thread runs a processor, so QEMU drops the code before it calls `dropped`.
        unsafe { qemu_plugin_reset(id, dropped) }
    }
}

fn worth_it(processor: c_uint) -> bool {
    let mut guard = trim();
    let Some(trim) = guard.as_mut() else { return false };
    trim.quiet.slept(processor, Instant::now()) && trim.code.resident_bytes() >= WORTH_BYTES && trim.quiet.take()
}

extern "C" fn resumed(_id: Id, processor: c_uint) {
    if let Some(trim) = trim().as_mut() {
        trim.quiet.woke(processor, Instant::now());
    }
}

/// No processor runs, and no translated code is known. Whoever resets a plugin takes its calls away.
extern "C" fn dropped(id: Id) {
    if let Some(trim) = trim().as_mut() {
        // SAFETY: this is the call after the reset.
        unsafe { trim.code.give_back() };
    }
    watch(id);
}
