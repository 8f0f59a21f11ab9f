"""QEMU's command line for a machine (qemu-system-x86_64(1))."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from drupe.hypervisors.contract import SPARE_DISK_BYTES, Device, Disk, MachineConfig, Nic, Share
from drupe.hypervisors.owners import uid_of

BRIDGE, BRIDGE_SLOTS = "more", range(2, 32)  # of q35: one bridge costs less boot time than a port for each device
SHARE_SLOT = 1  # also behind it: a guest that goes on from a template knows what it will find there
ROOT_PORTS = {"q35": 2, "virt": 6}  # q35 keeps them for devices of the host, which want PCI Express
SPARE_SLOT = 0x10  # of the first spare disk, on the root bus; what has no place of its own sits below
MEMORY_DEVICE = "growth"
HOLES = ("discard", "write-zeroes")  # a disk's: QEMU would make holes, which it must not where memory is shared
MEMORY_STEP_BYTES = 2 << 20
MEMORY_ROOM_BYTES = 128 << 20  # Linux plugs memory in sections of that size
_CONTROL_FD, _AGENT_FD = 3, 4  # the listeners of `Launch.listeners`, in their order
_MACHINES = {
    "q35": "q35,usb=off,sata=off,smbus=off,graphics=off",
    "microvm": "microvm,pit=off,pic=off,rtc=on,isa-serial=on,usb=off,pcie=off",
    "virt": "virt,gic-version=max,usb=off",
}
# A machine is one pod's: whoever waits for its kernel need not spare other pods.
_QUICK = ("rcupdate.rcu_expedited=1",)
# All that the emulator can do, but what tempts a kernel into copies byte by byte, each of which is emulated, and into a
# page table deeper than needed.
_EMULATED = {"virt": "max"}
_EMULATED_X86 = "max,-erms,-fsrm,-la57"
_CODE_SHARE, _CODE_LEAST_MIB = 10, 48
# What a kernel does at every step is translated once more: policies that nobody has loaded, and statistics of stalls.
_PLAIN = ("lsm=landlock,lockdown,yama", "psi=0")


def command_line(config: MachineConfig, program: str, machine: str, empty: Path) -> list[str]:
    """All of it. empty: an empty directory, which is its root once it has opened what it needs."""
    return [
        program, "-name", config.id, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-action", "panic=exit-failure", *_machine(config, machine), *_memory(config), *_guest(config, machine),
        *_channels(machine), *_ports(machine), *_devices(config, machine), *_incoming(config),
        *_confinement(config, empty),
    ]  # fmt: skip


def _machine(config: MachineConfig, machine: str) -> list[str]:
    kind = f"{_MACHINES[machine]},memory-backend=ram"
    processor = "host" if config.accelerator == "kvm" else _EMULATED.get(machine, _EMULATED_X86)
    processors = f"{config.processors},maxcpus={max(config.processors, config.processors_max)}"
    return ["-M", kind, "-accel", _accelerator(config), "-cpu", processor, "-smp", processors, *_plugin(config)]


def _plugin(config: MachineConfig) -> list[str]:
    if config.trim is None or config.accelerator != "tcg":
        return []
    code = config.code
    return ["-plugin", f"{config.trim},{plugin_words(code.begin, code.end, code.memory) if code else plugin_words()}"]


def plugin_words(begin: int = 0, end: int = 0, memory: int = 0) -> str:
    """What the plugin (native/trim) is told of a machine's code; nothing by default."""
    return f"code={begin}-{end},memory={memory}"


def _accelerator(config: MachineConfig) -> str:
    """Translated code is the largest part of a machine that shares its memory with others. It may be a tenth of what
    the machine has, of QEMU's own 1 GiB, but no less than what a start (31 MB) and a few programs after it take: with
    less QEMU throws all of it away and translates it anew."""
    if config.accelerator != "tcg" or not config.share_memory:
        return config.accelerator
    return f"tcg,tb-size={min(max(config.memory_bytes // _CODE_SHARE >> 20, _CODE_LEAST_MIB), 1024)}"


def _memory(config: MachineConfig) -> list[str]:
    size = config.memory_bytes
    room = room_of(config)
    if not room:
        return ["-m", f"{size // 1024}K", "-object", _backend(config)]
    shared = "on" if config.shared_memory else "off"
    more = f"memory-backend-memfd,id=more,size={room},share={shared},reserve=off"
    plug = f"virtio-mem-pci,id={MEMORY_DEVICE},memdev=more,block-size={MEMORY_STEP_BYTES},requested-size=0"
    sizes = f"{size // 1024}K,maxmem={(size + room) // 1024}K"
    return ["-m", sizes, "-object", _backend(config), "-object", more, "-device", plug]


def room_of(config: MachineConfig) -> int:
    """Bytes by which its memory may grow, rounded up to what a virtio-mem device holds."""
    room = max(config.memory_max_bytes - config.memory_bytes, 0)
    return -(-room // MEMORY_ROOM_BYTES) * MEMORY_ROOM_BYTES


def _backend(config: MachineConfig) -> str:
    size = f"id=ram,size={config.memory_bytes}"
    if config.saved is not None and config.share_memory:
        return f"memory-backend-file,{size},mem-path={config.saved / 'memory'},share=off"
    if config.memory_file is not None:
        return f"memory-backend-file,{size},mem-path={config.memory_file},share=on"
    shared = "on" if config.shared_memory else "off"
    return f"memory-backend-memfd,{size},share={shared}"


def _guest(config: MachineConfig, machine: str) -> list[str]:
    """What is booted; a machine that goes on has it in its memory, and QEMU need not hold it once more."""
    if config.saved is not None:
        return []
    console = "ttyAMA0" if machine == "virt" else "ttyS0"
    words = [f"console={console}", "panic=-1", "quiet", *_QUICK, *_clock(config, machine), *_no_bounce(config)]
    initrd = ["-initrd", str(config.initrd)] if config.initrd else []
    return ["-kernel", str(config.kernel), *initrd, "-append", " ".join([*words, *config.append])]


def _no_bounce(config: MachineConfig) -> list[str]:
    """Where memory may grow beyond 4 GiB the kernel keeps 64 MiB to copy through, for hardware that cannot reach it.
    There is none in a machine."""
    return ["swiotlb=noforce"] if room_of(config) else []


def _clock(config: MachineConfig, machine: str) -> list[str]:
    """A busy emulator is late with its timer, and the kernel would take it for broken; holes of a processor that is not
    there need no mending. A microvm has no timer that a kernel could measure the processor's counter against, and waits
    for ever where KVM does not tell it: the emulator hands out the host's counter, whose speed the host says."""
    if config.accelerator != "tcg":
        return []
    speed = [f"tsc_early_khz={host_khz()}"] if machine == "microvm" else []
    return ["no_timer_check", "mitigations=off", *_PLAIN, *speed]


@functools.cache
def host_khz() -> int:
    """The speed of the processor in kHz as proc_cpuinfo(5) says it; 2 GHz where it does not."""
    found = re.search(r"(?m)^cpu MHz\s*: ([0-9.]+)$", Path("/proc/cpuinfo").read_text())
    return round(float(found[1]) * 1000) if found else 2_000_000


def _channels(machine: str) -> list[str]:
    """Console, monitor, and the agent's port."""
    serial = "virtio-serial-device" if machine == "microvm" else "virtio-serial-pci"
    return [
        "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
        "-chardev", f"socket,id=monitor,fd={_CONTROL_FD},server=on,wait=off", "-mon", "chardev=monitor,mode=control",
        "-device", f"{serial},id=ports,max_ports=2",
        "-chardev", f"socket,id=agent,fd={_AGENT_FD},server=on,wait=off",
        "-device", "virtserialport,bus=ports.0,chardev=agent,name=drupe.agent",
    ]  # fmt: skip


def _ports(machine: str) -> list[str]:
    if machine == "microvm":
        return ["-device", "virtio-rng-device"]
    ports = [f"pcie-root-port,id=port{n},chassis={n + 1},slot={n + 1},bus=pcie.0" for n in range(ROOT_PORTS[machine])]
    if machine == "q35":  # with SHPC the firmware keeps addresses for what will be behind it; ACPI plugs it in
        ports.append(f"pci-bridge,id={BRIDGE},bus=pcie.0,chassis_nr=99,shpc=on")
    extra = ["virtio-rng-pci", "virtio-balloon-pci,id=balloon,free-page-reporting=on,deflate-on-oom=on"]
    return [word for device in (*ports, *extra) for word in ("-device", device)]


def _devices(config: MachineConfig, machine: str) -> list[str]:
    transport = "device" if machine == "microvm" else "pci"
    found: list[str] = []
    shares = config.shares if config.saved is None else ()  # a machine is neither saved nor restored with one
    devices: list[Device] = [*config.disks, *config.nics, *shares, *config.host_devices]
    places = {**_spare_places(config), **(_nic_places(config) if machine == "q35" else {}), **config.places}
    for device in devices:
        words = cold(device, transport, config)
        if place := places.get(device.id):
            words[-1] += f",{place}"
        found += words
    taken = {places.get(device.id, "") for device in devices}
    return found + list(_empty_places(config, taken))


def _nic_places(config: MachineConfig) -> dict[str, str]:
    """Interfaces behind the bridge, from its end, can be unplugged; on the root bus they could not."""
    return {nic.id: f"bus={BRIDGE},addr={BRIDGE_SLOTS[-1 - number]:#x}" for number, nic in enumerate(config.nics)}


def _spare_places(config: MachineConfig) -> dict[str, str]:
    return {disk.id: _spare_place(number) for number, disk in enumerate(config.disks[: config.spare_disks])}


def _spare_place(number: int) -> str:
    return f"bus=pcie.0,addr={SPARE_SLOT + number:#x}"


def _empty_places(config: MachineConfig, taken: set[str]) -> Iterator[str]:
    """A disk of nothing for each place that holds none."""
    for number in range(config.spare_disks):
        place = _spare_place(number)
        if place not in taken:
            name = f"spare{number}"
            nothing = f"driver=null-co,node-name=n-{name},size={SPARE_DISK_BYTES},read-zeroes=on,read-only=on"
            yield from (
                "-blockdev",
                nothing,
                "-device",
                f"virtio-blk-{_modern('pci')},id={name},drive=n-{name},{place}",
            )


def vectors_of(nic: Nic, accelerator: str) -> int | None:
    """How many of MSI-X an interface on PCI has; None is QEMU's own number. QEMU 7.2 ends by a signal when an emulated
    guest uses those of one that another process serves."""
    if nic.socket is not None and accelerator == "tcg":
        return 0
    return 2 * nic.queues + 2 if nic.queues > 1 else None


def cold(device: Device, transport: str, config: MachineConfig) -> list[str]:
    """The words for a device that is there from the start. QEMU is started in `config.dir`."""
    home = config.dir
    if isinstance(device, Disk):
        return list(_disk(device, transport, home))
    if isinstance(device, Nic):
        return list(_nic(device, transport, config))
    if isinstance(device, Share):
        return list(_share(device, transport, home))
    return ["-device", f"vfio-pci,id={device.id},host={device.address}"]


def _disk(disk: Disk, transport: str, home: Path) -> Iterator[str]:
    if disk.socket is not None:
        yield from ("-chardev", f"socket,id=c-{disk.id},path={_short(disk.socket, home)}")
        yield from ("-device", f"vhost-user-blk-{_modern(transport)},id={disk.id},chardev=c-{disk.id}")
        return
    cache = "cache.direct=on,aio=io_uring" if disk.direct else "cache.direct=off"
    only = "on" if disk.read_only else "off"
    file = f"node-name=n-{disk.id},driver={disk.format},read-only={only},file.driver=file,file.filename={disk.path}"
    yield from ("-blockdev", f"{file},file.{cache},file.locking=off")
    plain = "" if disk.read_only else "".join(f",{name}=off" for name in HOLES)
    yield from (
        "-device",
        f"virtio-blk-{_modern(transport)},id={disk.id},drive=n-{disk.id},serial={disk.id[:20]}{plain}",
    )


def _nic(nic: Nic, transport: str, config: MachineConfig) -> Iterator[str]:
    if nic.socket is not None:
        yield from ("-chardev", f"socket,id=c-{nic.id},path={_short(nic.socket, config.dir)}")
        yield from ("-netdev", f"vhost-user,id=n-{nic.id},chardev=c-{nic.id},queues={nic.queues}")
    else:
        queues = f",queues={nic.queues}" if nic.queues > 1 else ""
        yield from ("-netdev", f"tap,id=n-{nic.id},ifname={nic.tap},script=no,downscript=no{queues}")
    many = ",mq=on" if nic.queues > 1 else ""
    if transport == "pci" and (vectors := vectors_of(nic, config.accelerator)) is not None:
        many += f",vectors={vectors}"
    options = f"id={nic.id},netdev=n-{nic.id},mac={nic.mac},host_mtu={nic.mtu}{many}"
    yield from ("-device", f"virtio-net-{_modern(transport)},{options}" + (",romfile=" if transport == "pci" else ""))


def _modern(transport: str) -> str:
    """Virtio 1.0 alone, as of what is plugged in later: behind the bridge there are no I/O ports for older ones."""
    return "pci-non-transitional" if transport == "pci" else transport


def _share(share: Share, transport: str, home: Path) -> Iterator[str]:
    if share.socket is None:
        only = "on" if share.read_only else "off"
        yield from ("-fsdev", f"local,id=f-{share.id},path={share.path},security_model=none,readonly={only}")
        yield from ("-device", f"virtio-9p-{transport},id={share.id},fsdev=f-{share.id},mount_tag={share.tag}")
        return
    yield from ("-chardev", f"socket,id=c-{share.id},path={_short(share.socket, home)}")
    yield from ("-device", f"vhost-user-fs-{transport},id={share.id},chardev=c-{share.id},tag={share.tag}")


def _incoming(config: MachineConfig) -> list[str]:
    return [] if config.saved is None else ["-incoming", "defer"]


def _confinement(config: MachineConfig, empty: Path) -> list[str]:
    """Once all is open: another root, another user without capabilities, and a filter that knows no exec and no fork.
    (elevateprivileges=deny would refuse the change of user; no_new_privs is set by whoever starts it.)"""
    uid = uid_of(config.id)
    deny = "on,obsolete=deny,spawn=deny,resourcecontrol=deny"
    return ["-sandbox", deny, "-chroot", str(empty), "-runas", f"{uid}:{uid}"]


def _short(socket: Path, home: Path) -> Path:
    """A socket's path, relative where it can be: its length has a limit (unix(7))."""
    return socket.relative_to(home) if socket.is_relative_to(home) else socket
