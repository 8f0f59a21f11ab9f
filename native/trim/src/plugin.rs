//! What QEMU calls.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::code::Code;
use crate::quiet::Quiet;

/// Less than this is not worth that it is translated again.
const WORTH_BYTES: usize = 16 << 20;

type Id = u64;
type Call = extern "C" fn(Id);
type VcpuCall = extern "C" fn(Id, c_uint);

extern "C" {
    fn qemu_plugin_register_vcpu_idle_cb(id: Id, call: VcpuCall);
    fn qemu_plugin_register_vcpu_resume_cb(id: Id, call: VcpuCall);
    fn qemu_plugin_reset(id: Id, call: Call);
}

struct Trim {
    quiet: Quiet,
    code: Code,
}

static TRIM: Mutex<Option<Trim>> = Mutex::new(None);

/// The version of the interface that this was written for.
#[no_mangle]
#[allow(non_upper_case_globals)]
pub static qemu_plugin_version: c_int = 1;

/// Called once, before there is a machine, and before QEMU gives up its rights and its root.
#[no_mangle]
pub extern "C" fn qemu_plugin_install(id: Id, _info: *const c_void, _argc: c_int, _argv: *mut *mut c_char) -> c_int {
    match Code::open() {
        Ok(code) => {
            *trim() = Some(Trim { quiet: Quiet::new(Instant::now()), code });
            watch(id);
            0
        }
        Err(_) => -1,
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
