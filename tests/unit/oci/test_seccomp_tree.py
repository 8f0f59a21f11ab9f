"""The filter as a binary tree and as a list give the same verdict on every system call."""

from __future__ import annotations

import itertools
import struct

from drupe.oci import seccomp
from drupe.oci.capabilities import DEFAULT

X86_64, I386, OTHER = 0xC000003E, 0x40000003, 0xC00000B7
X32 = 0x40000000
ARGUMENTS = (0, 1, 8, 40, 0x20008, 0x7E020000, 0xFFFFFFFF, 2**64 - 1)


def verdict(program: bytes, number: int, arch: int, argument: int) -> int:
    """Run a classic BPF program on a struct seccomp_data (seccomp(2)) whose six arguments are all the same."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *[argument] * 6)
    code = list(struct.iter_unpack("<HBBI", program))
    at = accumulator = 0
    while True:
        op, jump_true, jump_false, k = code[at]
        at += 1
        match op:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, k)
            case 0x54:
                accumulator &= k
            case 0x05:
                at += k
            case 0x15 | 0x25 | 0x35 | 0x45:
                a = accumulator
                met = {0x15: a == k, 0x25: a > k, 0x35: a >= k, 0x45: bool(a & k)}[op]
                at += jump_true if met else jump_false
            case 0x06:
                return k
            case _:
                raise AssertionError(f"operation {op:#x}")


def test_tree_and_list_agree() -> None:
    filter_ = seccomp.seccomp_for("default", DEFAULT)
    assert filter_ is not None
    plain, tree = seccomp.compile_oci(filter_), seccomp.compile_oci(filter_, tree=True)
    assert plain != tree
    numbers = [*range(480), *range(X32, X32 + 560, 29)]
    verdicts = set()
    for number, arch, argument in itertools.product(numbers, (X86_64, I386), ARGUMENTS):
        found = verdict(tree, number, arch, argument)
        assert found == verdict(plain, number, arch, argument), (number, hex(arch), hex(argument))
        verdicts.add(found)
    assert len(verdicts) >= 3  # allowed, refused, and "no such call"
    assert verdict(tree, 0, OTHER, 0) == verdict(plain, 0, OTHER, 0) == 0  # killed
