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
import signal
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
# Where the host is emulated itself, or busy, the same loop of its own is slow too: an emulated ring 0 is slower by
# thousands than that.
TOO_SLOW_TIMES = 30.0
_ENDS_WITHIN_S = 3.0
_SHORT, _LONGER = 20_000, 120_000  # rounds
_MEMORY_BYTES = 0x4000
_CODE_AT = 0x1000
# ring 0, 32 bits, flat: mov ecx, N; again: dec ecx; jnz again; hlt
_LOOP = b"\xb9%s\x49\x75\xfd\xf4"
_OWN_LOOP = b"\xb9%s\xff\xc9\x75\xfc\xc3"  # the same in a process's 64 bits, and ret


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


def own_ns_per_instruction(rounds: int) -> float:
    """How long the same takes in this process."""
    code = _OWN_LOOP % struct.pack("<I", rounds)
    with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as memory:
        memory[: len(code)] = code
        place = ctypes.c_char.from_buffer(memory)
        loop = ctypes.CFUNCTYPE(None)(ctypes.addressof(place))
        began = time.perf_counter_ns()
        loop()
        took = time.perf_counter_ns() - began
        del place
    return took / (2 * rounds)


def is_slow(guest_ns: float, own_ns: float) -> bool:
    """Whether that guest's kernel mode is emulated."""
    return guest_ns > max(TOO_SLOW_NS, TOO_SLOW_TIMES * own_ns)


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
    """The loops are short: where they are emulated, long ones would take for ever. What hangs is ended."""
    own = min(own_ns_per_instruction(100_000) for _ in range(10))  # as it is when nobody else has the processor
    signal.setitimer(signal.ITIMER_REAL, _ENDS_WITHIN_S * max(own, 1.0))
    try:
        short, longer = (ns_per_instruction(rounds) * rounds for rounds in (_SHORT, _LONGER))
        speed = max(longer - short, 0.0) / (_LONGER - _SHORT)  # without what it takes to come in and out
        print(json.dumps({"ns": speed, "own_ns": own}))
    except OSError as error:
        print(json.dumps({"error": error.strerror or str(error)}))


if __name__ == "__main__":
    main()
