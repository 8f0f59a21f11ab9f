"""A program in the place of Firecracker's jailer: it judges its command line by the published one (docs/jailer.md of
Firecracker), makes the root, and starts the program for it, but changes neither root nor user: the stand-in for that
program would not outlive it."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

NEEDS = {0, 6, 7, 18, 21, 27}  # CHOWN, SETGID, SETUID, SYS_CHROOT, SYS_ADMIN, MKNOD (capabilities(7))


def install(directory: Path) -> None:
    """A command called jailer in `directory`."""
    command = directory / "jailer"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} "$@"\n')
    command.chmod(0o755)


def capabilities() -> set[int]:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    bits = int(line.split()[1], 16)
    return {bit for bit in range(64) if bits >> bit & 1}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for flag in ("id", "exec-file", "uid", "gid"):
        parser.add_argument(f"--{flag}", required=True, type=int if flag in ("uid", "gid") else str)
    for flag in ("chroot-base-dir", "netns", "cgroup", "cgroup-version", "parent-cgroup", "resource-limit"):
        parser.add_argument(f"--{flag}", default="/srv/jailer" if flag == "chroot-base-dir" else "")
    for flag in ("daemonize", "new-pid-ns"):
        parser.add_argument(f"--{flag}", action="store_true")
    own, rest = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    asked = parser.parse_args(own)
    program = Path(asked.exec_file)
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", asked.id) or not (
        program.is_absolute() and "firecracker" in program.name
    ):
        sys.exit(f"jailer: invalid {asked.id} or {program}")
    if asked.uid == 0 or asked.gid == 0 or not capabilities() >= NEEDS:
        sys.exit("jailer: no user of its own, or not the rights to become it")
    root = Path(asked.chroot_base_dir, program.name, asked.id, "root")
    root.mkdir(parents=True)
    os.chown(root, asked.uid, asked.gid)
    if rest != ["--api-sock", "/api.sock"]:
        sys.exit(f"jailer: {rest} are no paths of its root")
    os.execv(program, [str(program), "--id", asked.id, "--api-sock", str(root / "api.sock"), "--jailed"])


if __name__ == "__main__":
    main(sys.argv[1:])
