"""KVM, as far as a probe needs it: does a guest's kernel mode run on the processor, and how fast? (kvm-api.rst)

As a program (`python -m drupe.linux.kvm`) it prints one JSON object and ends: KVM can hang, so that it has to be asked
from a process that can be killed.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import struct
import time

_CREATE_VM, _GET_VCPU_MMAP_SIZE, _CREATE_VCPU = 0xAE01, 0xAE04, 0xAE41
_SET_USER_MEMORY_REGION, _RUN = 0x4020AE46, 0xAE80
_GET_REGS, _SET_REGS, _GET_SREGS, _SET_SREGS = 0x8090AE81, 0x4090AE82, 0x8138AE83, 0x4138AE84
_REGS_BYTES, _SREGS_BYTES, _SEGMENT_BYTES = 144, 312, 24
_RSP, _RIP, _RFLAGS = 6, 16, 17  # indexes in struct kvm_regs, of 64 bits each
_CS, _CR0 = 0, 224  # offsets in struct kvm_sregs: segments come first, then two tables, then cr0
_EXIT_HLT = 5
TOO_SLOW_NS = 50.0  # a processor takes less than one; an emulator some hundred
_MEMORY_BYTES = 0x4000
_CODE_AT = 0x1000
# ring 0, 32 bits, flat: mov ecx, N; again: dec ecx; jnz again; hlt
_LOOP = b"\xb9%s\x49\x75\xfd\xf4"


def ns_per_instruction(rounds: int) -> float:
    """How long an instruction of a guest's ring 0 takes, over a loop of two. OSError when KVM refuses something."""
    memory = mmap.mmap(-1, _MEMORY_BYTES)
    code = _LOOP % struct.pack("<I", rounds)
    memory[_CODE_AT : _CODE_AT + len(code)] = code
    device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    vm = fcntl.ioctl(device, _CREATE_VM, 0)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(vm, _SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, _MEMORY_BYTES, address))
    vcpu = fcntl.ioctl(vm, _CREATE_VCPU, 0)
    shared = mmap.mmap(vcpu, fcntl.ioctl(device, _GET_VCPU_MMAP_SIZE))
    _set_up(vcpu)
    began = time.perf_counter_ns()
    fcntl.ioctl(vcpu, _RUN, 0)
    took = time.perf_counter_ns() - began
    (reason,) = struct.unpack_from("<I", shared, 8)
    if reason != _EXIT_HLT:
        raise OSError(0, f"the guest stopped for reason {reason}, not at its end")
    return took / (2 * rounds)


def _set_up(vcpu: int) -> None:
    """Protected mode with flat segments, at the code."""
    sregs = bytearray(fcntl.ioctl(vcpu, _GET_SREGS, bytes(_SREGS_BYTES)))
    for number in range(6):  # cs, ds, es, fs, gs, ss: base, limit, selector, type, present, dpl, db, s, l, g
        kind = 11 if number == _CS else 3
        segment = struct.pack("<QIHBBBBBBBBBB", 0, 0xFFFFFFFF, 8 * (number + 1), kind, 1, 0, 1, 1, 0, 1, 0, 0, 0)
        sregs[number * _SEGMENT_BYTES : (number + 1) * _SEGMENT_BYTES] = segment
    (cr0,) = struct.unpack_from("<Q", sregs, _CR0)
    struct.pack_into("<Q", sregs, _CR0, cr0 | 1)
    fcntl.ioctl(vcpu, _SET_SREGS, bytes(sregs))
    regs = [0] * 18
    regs[_RIP], regs[_RFLAGS], regs[_RSP] = _CODE_AT, 2, _MEMORY_BYTES
    fcntl.ioctl(vcpu, _SET_REGS, struct.pack("<18Q", *regs))


def main() -> None:
    """A short loop first: where it is emulated, a long one would take for ever."""
    try:
        speed = ns_per_instruction(20_000)
        if speed < TOO_SLOW_NS:
            speed = ns_per_instruction(2_000_000)
        print(json.dumps({"ns": speed}))
    except OSError as error:
        print(json.dumps({"error": error.strerror or str(error)}))


if __name__ == "__main__":
    main()
