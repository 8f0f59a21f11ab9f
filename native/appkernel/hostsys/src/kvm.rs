//! The host's virtual machines (the KVM API, Documentation/virt/kvm/api.rst): a machine, its memory, its processors.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;

use crate::arena::Arena;
use crate::kvm_types::{Cpuid, CpuidEntry, Msrs, Region, Regs, Sregs, Xcrs, XSAVE_BYTES};
use crate::notify::own;

const GET_API_VERSION: u64 = 0xae00;
const CREATE_VM: u64 = 0xae01;
const CHECK_EXTENSION: u64 = 0xae03;
const GET_VCPU_MMAP_SIZE: u64 = 0xae04;
const GET_SUPPORTED_CPUID: u64 = 0xc008_ae05;
const CREATE_VCPU: u64 = 0xae41;
const SET_TSS_ADDR: u64 = 0xae47;
const SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
const RUN: u64 = 0xae80;
const GET_SREGS: u64 = 0x8138_ae83;
const SET_SREGS: u64 = 0x4138_ae84;
const GET_MSRS: u64 = 0xc008_ae88;
const SET_MSRS: u64 = 0x4008_ae89;
const SET_CPUID2: u64 = 0x4008_ae90;
const GET_XSAVE: u64 = 0x9000_aea4;
const SET_XSAVE: u64 = 0x5000_aea5;
const SET_XCRS: u64 = 0x4188_aea7;

/// Requests of a machine that runs; those by which it is made are none of a confined kernel's.
pub(crate) const REQUESTS: &[u32] = &[
    RUN as u32,
    SET_USER_MEMORY_REGION as u32,
    GET_SREGS as u32,
    SET_SREGS as u32,
    GET_MSRS as u32,
    SET_MSRS as u32,
    GET_XSAVE as u32,
    SET_XSAVE as u32,
];

const API_VERSION: i32 = 12;
const CAP_SYNC_REGS: libc::c_ulong = 74;
const CAP_IMMEDIATE_EXIT: libc::c_ulong = 136;
const SYNC_REGS: u64 = 1;
/// Three pages that some processors want below 4 GiB, where no memory of ours is.
const TSS_PLACE: libc::c_ulong = 0xfffb_d000;

// struct kvm_run
const AT_IMMEDIATE_EXIT: usize = 1;
const AT_EXIT_REASON: usize = 8;
const AT_PORT: usize = 34;
const AT_VALID: usize = 288;
const AT_DIRTY: usize = 296;
const AT_REGS: usize = 304;
const EXIT_IO: u32 = 2;

fn ioctl(fd: RawFd, request: u64, argument: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: `argument` is a number, or the address of the request's structure, which lives as long as the call.
    let done = unsafe { libc::ioctl(fd, request, argument) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(done)
    }
}

fn with<T>(fd: &OwnedFd, request: u64, argument: &mut T) -> io::Result<i32> {
    ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument) as libc::c_ulong)
}

fn lacking(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("the host's KVM lacks {what}"))
}

/// /dev/kvm, opened while paths of the host can be.
pub struct Kvm(OwnedFd);

impl Kvm {
    /// An error says why there is none: no such file, no right, an API that is not what we need.
    pub fn open() -> io::Result<Kvm> {
        // SAFETY: the path is a C string.
        let kvm = Kvm(own(unsafe { libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) })?);
        if ioctl(kvm.0.as_raw_fd(), GET_API_VERSION, 0)? != API_VERSION {
            return Err(lacking("API version 12"));
        }
        if kvm.extension(CAP_SYNC_REGS)? as u64 & SYNC_REGS == 0 {
            return Err(lacking("KVM_CAP_SYNC_REGS"));
        }
        if kvm.extension(CAP_IMMEDIATE_EXIT)? == 0 {
            return Err(lacking("KVM_CAP_IMMEDIATE_EXIT"));
        }
        Ok(kvm)
    }

    fn extension(&self, number: libc::c_ulong) -> io::Result<i32> {
        ioctl(self.0.as_raw_fd(), CHECK_EXTENSION, number)
    }

    /// What processors of a machine may say that they are (cpuid).
    pub fn cpuid(&self) -> io::Result<Vec<CpuidEntry>> {
        let mut list = Box::new(Cpuid::default());
        with(&self.0, GET_SUPPORTED_CPUID, list.as_mut())?;
        Ok(list.entries[..(list.count as usize).min(list.entries.len())].to_vec())
    }

    /// A machine without memory and processors, of this process alone.
    pub fn create(&self) -> io::Result<Vm> {
        let fd = own(ioctl(self.0.as_raw_fd(), CREATE_VM, 0)?)?;
        // Only some processors know it.
        let _unneeded = ioctl(fd.as_raw_fd(), SET_TSS_ADDR, TSS_PLACE);
        let run_bytes = ioctl(self.0.as_raw_fd(), GET_VCPU_MMAP_SIZE, 0)? as usize;
        Ok(Vm { fd, run_bytes })
    }
}

/// A machine.
pub struct Vm {
    fd: OwnedFd,
    run_bytes: usize,
}

impl Vm {
    /// Have `size` bytes of the arena be the machine's memory at `address`; 0: not any more.
    pub fn set_memory(&self, slot: u32, address: u64, size: u64, arena: &Arena, offset: u64) -> io::Result<()> {
        let memory = arena.host_address(offset, size)?;
        let mut region = Region { slot, flags: 0, address, size, memory };
        with(&self.fd, SET_USER_MEMORY_REGION, &mut region).map(drop)
    }

    /// A further processor.
    pub fn create_cpu(&self, index: u32) -> io::Result<Vcpu> {
        // SAFETY: no memory is involved, and the descriptor is new.
        let fd = unsafe { OwnedFd::from_raw_fd(ioctl(self.fd.as_raw_fd(), CREATE_VCPU, index.into())?) };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping, at an address that the host chooses.
        let run = unsafe {
            libc::mmap(std::ptr::null_mut(), self.run_bytes, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if run == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Vcpu { fd, run: Arc::new(Run { at: run.cast(), size: self.run_bytes }) })
    }
}

/// The page that a processor shares with this process (struct kvm_run).
struct Run {
    at: *mut u8,
    size: usize,
}

// SAFETY: accessed by one thread at a time, which owns the processor, but for the byte of `Kick`, which is atomic.
unsafe impl Send for Run {}
// SAFETY: as above.
unsafe impl Sync for Run {}

impl Drop for Run {
    fn drop(&mut self) {
        // SAFETY: mapped by `create_cpu`, and nobody refers to it any more.
        unsafe { libc::munmap(self.at.cast(), self.size) };
    }
}

impl Run {
    fn get<T: Copy>(&self, at: usize) -> T {
        assert!(at + size_of::<T>() <= self.size);
        // SAFETY: within the mapping; T is plain data in all of our uses.
        unsafe { self.at.add(at).cast::<T>().read_volatile() }
    }

    fn set<T: Copy>(&self, at: usize, value: T) {
        assert!(at + size_of::<T>() <= self.size);
        // SAFETY: as above.
        unsafe { self.at.add(at).cast::<T>().write_volatile(value) };
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: a byte of the mapping, which lives as long as `self`.
        unsafe { AtomicU8::from_ptr(self.at.add(AT_IMMEDIATE_EXIT)) }
    }
}

/// Has a processor come out of its guest, together with a signal to the thread that runs it.
#[derive(Clone)]
pub struct Kick(Arc<Run>);

impl Kick {
    pub fn set(&self, on: bool) {
        self.0.immediate_exit().store(on.into(), Ordering::SeqCst);
    }
}

/// Why a processor has come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Code in ring 0 has written to a port.
    Port(u16),
    /// A signal, or `Kick`.
    Interrupted,
    /// Memory of the machine that is not there in the host (a file was cut).
    NoMemory,
    /// Anything else: the machine cannot go on like this (the exit's number in the API).
    Broken(u32),
}

/// A processor. Its requests are made by one thread at a time.
pub struct Vcpu {
    fd: OwnedFd,
    run: Arc<Run>,
}

impl Vcpu {
    pub fn kick(&self) -> Kick {
        Kick(Arc::clone(&self.run))
    }

    /// Run with these registers (None: with those that it has) until something comes; the registers then.
    pub fn run(&mut self, registers: Option<&Regs>) -> io::Result<(Exit, Regs)> {
        if let Some(registers) = registers {
            self.run.set(AT_REGS, *registers);
        }
        self.run.set(AT_DIRTY, if registers.is_some() { SYNC_REGS } else { 0 });
        self.run.set(AT_VALID, SYNC_REGS);
        let exit = match ioctl(self.fd.as_raw_fd(), RUN, 0) {
            Ok(_) => match self.run.get(AT_EXIT_REASON) {
                EXIT_IO => Exit::Port(self.run.get(AT_PORT)),
                other => Exit::Broken(other),
            },
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => Exit::Interrupted,
                Some(libc::EFAULT) => Exit::NoMemory,
                _ => return Err(error),
            },
        };
        Ok((exit, self.run.get(AT_REGS)))
    }

    pub fn sregs(&self) -> io::Result<Sregs> {
        let mut sregs = Sregs::default();
        with(&self.fd, GET_SREGS, &mut sregs)?;
        Ok(sregs)
    }

    pub fn set_sregs(&self, sregs: &Sregs) -> io::Result<()> {
        with(&self.fd, SET_SREGS, &mut { *sregs }).map(drop)
    }

    pub fn set_cpuid(&self, entries: &[CpuidEntry]) -> io::Result<()> {
        let mut list = Box::new(Cpuid::default());
        let room = list.entries.get_mut(..entries.len()).ok_or_else(|| io::Error::from_raw_os_error(libc::E2BIG))?;
        room.copy_from_slice(entries);
        list.count = entries.len() as u32;
        with(&self.fd, SET_CPUID2, list.as_mut()).map(drop)
    }

    /// XCR0: the extended states that there are.
    pub fn set_features(&self, xcr0: u64) -> io::Result<()> {
        with(&self.fd, SET_XCRS, &mut Xcrs::new(xcr0)).map(drop)
    }

    /// Model-specific registers, by their numbers.
    pub fn msrs<const N: usize>(&self, numbers: [u32; N]) -> io::Result<[u64; N]> {
        let mut list = Msrs::new(numbers.map(|number| (number, 0)));
        if with(&self.fd, GET_MSRS, &mut list)? as usize != N {
            return Err(lacking("a model-specific register"));
        }
        Ok(list.values())
    }

    pub fn set_msrs<const N: usize>(&self, values: [(u32, u64); N]) -> io::Result<()> {
        if with(&self.fd, SET_MSRS, &mut Msrs::new(values))? as usize != N {
            return Err(lacking("a model-specific register"));
        }
        Ok(())
    }

    /// Floating-point and vector registers, as XSAVE writes them.
    pub fn xsave(&self) -> io::Result<Box<[u8; XSAVE_BYTES]>> {
        let mut area = Box::new([0; XSAVE_BYTES]);
        with(&self.fd, GET_XSAVE, area.as_mut())?;
        Ok(area)
    }

    /// EINVAL for what no processor would take.
    pub fn set_xsave(&self, area: &[u8; XSAVE_BYTES]) -> io::Result<()> {
        with(&self.fd, SET_XSAVE, &mut { *area }).map(drop)
    }
}
