"""What becomes of each field of the runtime specification where a stand-in is in the container's place, and the
workload in a sandbox that the daemon keeps: one rule for each, so that none is overlooked.

The stand-in is a container that crun makes of the same bundle. So namespaces, mounts, hooks and cgroups are crun's
work, as for the runc kind; what concerns the workload itself is the kind's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from drupe.errors import Unsupported
from drupe.oci.mount_options import refuse_options
from drupe.oci.runtime_spec import Device, Linux, Mount, Process, RuntimeConfig

Uses = Callable[[RuntimeConfig], object]


@dataclass(frozen=True, slots=True)
class Carried:
    """Honoured. by: whose work it is."""

    by: str


@dataclass(frozen=True, slots=True)
class Needs:
    """Honoured by kinds that have the feature, refused by others. uses: whether a config asks for it; what engines send
    always does not."""

    feature: str
    uses: Uses


@dataclass(frozen=True, slots=True)
class Moot:
    """Nothing to do, because of `why`: who asks for it has it."""

    why: str


@dataclass(frozen=True, slots=True)
class Lacked:
    """Honoured, but by the kinds of `by`, which cannot for the reason that is said. uses: as above."""

    by: Mapping[str, str]
    uses: Uses


@dataclass(frozen=True, slots=True)
class Refused:
    """No kind carries it out. uses: whether a config asks for it."""

    uses: Uses
    why: str = "no kind but runc has it yet"


Rule = Carried | Needs | Moot | Lacked | Refused

STAND_IN = Carried("the stand-in has it, in the workload's place")
KIND = Carried("the kind of sandbox")
DAEMON = Carried("the daemon, for all that runs in the sandbox")
_NO_HOST_KERNEL = Moot("no system call of the workload reaches the host's kernel")
_OWN_FILES = Carried("the kind, where its /proc and /sys are Linux's; those of its own show nothing; no other paths")
_DEVICES = Carried("the kind, where it has any of the host; else none can be opened from inside")
_READ = Carried("read to check the bundle")

# engines set them for everybody; without them a workload may do less, not more
WIDENING = ("net.ipv4.ping_group_range", "net.ipv4.ip_unprivileged_port_start")
_FILE_SYSTEMS = ("bind", "none", "tmpfs", "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2")
# nodes that every container has (the specification's "Default Devices"): whoever asks for one, too, asks for nothing
_MEMORY_DEVICES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}
DEFAULT_DEVICES = frozenset(
    [("/dev/tty", "c", 5, 0), ("/dev/ptmx", "c", 5, 2)]
    + [(f"/dev/{name}", "c", 1, minor) for name, minor in _MEMORY_DEVICES.items()]
)
TRAVELLING = ("shared", "rshared", "slave", "rslave")  # mounts that know of the host's
_USUAL_UMASK = 0o22
_NOT_JOINED = ("pid", "ipc", "uts", "mount", "cgroup", "user", "time")
_OWN_SPACES = "of the namespaces of others a sandbox joins the network alone; all others are its own kernel's"
_ITS_MOUNTS = "without one its mounts would be made on the host"
_KERNELS_OWN = ("/proc/", "/sys/")


def _linux(config: RuntimeConfig) -> Linux:
    return config.linux or Linux()


def _process(config: RuntimeConfig) -> Process:
    return config.process or Process(cwd="/")


def lacks_namespace(config: RuntimeConfig, name: str) -> bool:
    """Whether it would use the host's."""
    return all(space.type != name for space in _linux(config).namespaces or ())


def _has(name: str) -> Uses:
    return lambda config: not lacks_namespace(config, name)


def _joins(name: str) -> Uses:
    return lambda config: any(space.type == name and space.path for space in _linux(config).namespaces or ())


def _mounts(test: Callable[[Mount], object]) -> Uses:
    return lambda config: any(test(mount) for mount in config.mounts or ())


def _options(mount: Mount) -> set[str]:
    return set(mount.options or ())


def is_bind(mount: Mount) -> bool:
    """Whether a mount shows something of the host (mount(8))."""
    return mount.type == "bind" or bool({"bind", "rbind"} & _options(mount))


def is_idmap(option: str) -> bool:
    """Whether an option of a mount shows its files with other ids ("idmap", or crun's "idmap=uids=..")."""
    return option.partition("=")[0] in ("idmap", "ridmap")


def _other_file_system(mount: Mount) -> bool:
    return not is_bind(mount) and mount.type not in _FILE_SYSTEMS


def _umask(config: RuntimeConfig) -> bool:
    user = _process(config).user
    return user is not None and user.umask not in (None, _USUAL_UMASK)


def hides_elsewhere(paths: list[str] | None) -> bool:
    """Whether some of masked or read-only paths are below neither /proc nor /sys, which are the kernel's own."""
    return any(not path.startswith(_KERNELS_OWN) for path in paths or ())


def _hook(name: str) -> Uses:
    return lambda config: config.hooks and getattr(config.hooks, name)


def _seccomp(name: str) -> Uses:
    return lambda config: getattr(_linux(config).seccomp, name, None)


def _outside(name: str) -> Uses:
    return lambda config: getattr(config, name)


def _of_linux(name: str) -> Uses:
    return lambda config: getattr(_linux(config), name)


def further_devices(config: RuntimeConfig) -> list[Device]:
    """Those that a container has not in any case."""
    devices = _linux(config).devices or ()
    return [one for one in devices if (one.path, one.type, one.major, one.minor) not in DEFAULT_DEVICES]


def _of_process(name: str) -> Uses:
    return lambda config: getattr(_process(config), name)


_LIMIT = Carried("the daemon limits the cgroup of the whole sandbox, and reads it back; see oci/limits.py")
_NO_LIMIT = Carried("refused by oci/limits.py unless it is the default")

# A path with "*" stands for itself and all below it; the longest that fits counts.
RULES: Mapping[str, Rule] = {
    "ociVersion": _READ,
    "root.path": DAEMON,
    "root.readonly": KIND,
    "hostname": KIND,
    "domainname": Refused(_outside("domainname")),
    "annotations": Carried("told by `state`; those of crun's own reach neither crun"),
    "mounts[].destination": KIND,
    "mounts[].source": DAEMON,
    "mounts[].type": Refused(_mounts(_other_file_system)),
    "mounts[].options": Needs("mount-propagation", _mounts(lambda mount: _options(mount) & {*TRAVELLING})),
    "mounts[].options idmap": Refused(_mounts(lambda mount: any(map(is_idmap, mount.options or ())))),
    "mounts[].uidMappings*": Refused(_mounts(lambda mount: mount.uid_mappings)),
    "mounts[].gidMappings*": Refused(_mounts(lambda mount: mount.gid_mappings)),
    "process.args": KIND,
    "process.cwd": KIND,
    "process.env": KIND,
    "process.terminal": STAND_IN,
    "process.consoleSize*": STAND_IN,
    "process.user.uid": KIND,
    "process.user.gid": KIND,
    "process.user.additionalGids": KIND,
    "process.user.umask": Lacked({"gvisor": "runsc takes none; the usual 022 is what there is"}, _umask),
    "process.user.username": Refused(lambda config: getattr(_process(config).user, "username", None)),
    "process.capabilities*": KIND,
    "process.rlimits*": KIND,
    "process.noNewPrivileges": Moot("programs in a sandbox gain nothing of the host's, whatever is said"),
    "process.oomScoreAdj": Carried("the kind; of one whose kernel the host's killer sees alone, it is shown inside"),
    "process.apparmorProfile": _NO_HOST_KERNEL,
    "process.selinuxLabel": _NO_HOST_KERNEL,
    "process.commandLine": Refused(_of_process("command_line")),
    "process.scheduler*": Refused(_of_process("scheduler")),
    "process.ioPriority*": Refused(_of_process("io_priority")),
    "process.execCPUAffinity*": Refused(_of_process("exec_cpu_affinity")),
    "hooks.prestart*": STAND_IN,
    "hooks.createRuntime*": STAND_IN,
    "hooks.createContainer*": STAND_IN,
    "hooks.startContainer*": Refused(_hook("start_container")),
    "hooks.poststart*": STAND_IN,
    "hooks.poststop*": STAND_IN,
    "linux.namespaces[].type": STAND_IN,
    **{f"linux.namespaces[].path {name}": Refused(_joins(name), _OWN_SPACES) for name in _NOT_JOINED},
    "linux.namespaces[].path": Carried("the sandbox joins the network that it names; others are refused, above"),
    "linux.namespaces mount": Refused(lambda config: lacks_namespace(config, "mount"), _ITS_MOUNTS),
    "linux.namespaces pid": Needs("host-pid", lambda config: lacks_namespace(config, "pid")),
    "linux.namespaces ipc": Needs("host-ipc", lambda config: lacks_namespace(config, "ipc")),
    "linux.namespaces uts": Needs("host-uts", lambda config: lacks_namespace(config, "uts")),
    "linux.namespaces network": Needs("host-network", lambda config: lacks_namespace(config, "network")),
    "linux.namespaces user": Refused(_has("user")),
    "linux.namespaces time": Refused(_has("time")),
    "linux.uidMappings*": Refused(_of_linux("uid_mappings")),
    "linux.gidMappings*": Refused(_of_linux("gid_mappings")),
    "linux.timeOffsets*": Refused(_of_linux("time_offsets")),
    "linux.devices*": Needs("devices", further_devices),
    "linux.cgroupsPath": DAEMON,
    "linux.sysctl*": Needs("sysctls", lambda config: set(_linux(config).sysctl or ()) - {*WIDENING}),
    "linux.rootfsPropagation": Needs(
        "mount-propagation", lambda config: _linux(config).rootfs_propagation in TRAVELLING
    ),
    "linux.maskedPaths": _OWN_FILES,
    "linux.maskedPaths elsewhere": Needs("masked-paths", lambda config: hides_elsewhere(_linux(config).masked_paths)),
    "linux.readonlyPaths": _OWN_FILES,
    "linux.readonlyPaths elsewhere": Needs(
        "masked-paths", lambda config: hides_elsewhere(_linux(config).readonly_paths)
    ),
    "linux.mountLabel": Moot("files are opened by the sandbox, not by the workload"),
    "linux.seccomp*": Carried(
        "the kind of sandbox, where its kernel has filters; a module has the engine's, which is narrower"
    ),
    "linux.seccomp.listenerPath": Refused(_seccomp("listener_path")),
    "linux.seccomp.listenerMetadata": Refused(_seccomp("listener_metadata")),
    "linux.personality*": Refused(_of_linux("personality")),
    "linux.intelRdt*": Refused(_of_linux("intel_rdt")),
    "linux.netDevices*": Refused(_of_linux("net_devices")),
    "linux.memoryPolicy*": Refused(_of_linux("memory_policy")),
    "linux.resources.devices*": _DEVICES,
    "linux.resources.memory.limit": _LIMIT,
    "linux.resources.memory.reservation": _LIMIT,
    "linux.resources.memory.swap": _LIMIT,
    "linux.resources.memory.swappiness": _LIMIT,
    "linux.resources.memory.disableOOMKiller": _LIMIT,
    "linux.resources.memory.kernel": _NO_LIMIT,
    "linux.resources.memory.kernelTCP": _NO_LIMIT,
    "linux.resources.memory.useHierarchy": Moot("limits hold for what is below, as the kernel has it by now"),
    "linux.resources.memory.checkBeforeUpdate": Moot("a limit that did not take is an error, always"),
    "linux.resources.cpu.shares": _LIMIT,
    "linux.resources.cpu.quota": _LIMIT,
    "linux.resources.cpu.period": _LIMIT,
    "linux.resources.cpu.cpus": _LIMIT,
    "linux.resources.cpu.mems": _LIMIT,
    "linux.resources.cpu.burst": _NO_LIMIT,
    "linux.resources.cpu.idle": _NO_LIMIT,
    "linux.resources.cpu.realtimeRuntime": _NO_LIMIT,
    "linux.resources.cpu.realtimePeriod": _NO_LIMIT,
    "linux.resources.pids.limit": Carried("the daemon; where the kind's own kernel counts, as a limit of each user"),
    "linux.resources.blockIO.weight": _LIMIT,
    "linux.resources.blockIO.throttle*": _LIMIT,
    "linux.resources.blockIO.leafWeight": _NO_LIMIT,
    "linux.resources.blockIO.weightDevice*": _NO_LIMIT,
    "linux.resources.hugepageLimits*": Needs("huge-pages", lambda config: _resources(config, "hugepage_limits")),
    "linux.resources.network*": _NO_LIMIT,
    "linux.resources.rdma*": _NO_LIMIT,
    "linux.resources.unified*": Needs("cgroup-files", lambda config: _resources(config, "unified")),
    "vm*": Refused(_outside("vm")),
    "windows*": Refused(_outside("windows")),
    "solaris*": Refused(_outside("solaris")),
    "zos*": Refused(_outside("zos")),
}


def _resources(config: RuntimeConfig, name: str) -> object:
    return getattr(_linux(config).resources, name, None)


def rule_of(path: str) -> Rule | None:
    """The rule for a field, by its path as "linux.namespaces[].type"; None when there is none."""
    fitting = [key for key in RULES if key == path or (key.endswith("*") and path.startswith(key[:-1]))]
    return RULES[max(fitting, key=len)] if fitting else None


def refuse_uncarried(config: RuntimeConfig, kind: str, able: Mapping[str, str]) -> None:
    """Raise Unsupported naming the first field that this kind does not carry out. able: its capabilities ("yes",
    "limited: reason", "no: reason" by feature)."""
    for path, rule in RULES.items():
        why = _why_not(rule, kind, able)
        if why is not None and isinstance(rule, Needs | Lacked | Refused) and rule.uses(config):
            field = path.rstrip("*")
            raise Unsupported(
                f"config.json: {field} is not carried out by {kind} sandboxes", kind=kind, feature=field, cause=why
            )
    refuse_options(config, kind)


def refuses(path: str, kind: str, able: Mapping[str, str]) -> bool:
    """Whether a kind with these capabilities refuses who asks for the field of that rule."""
    return _why_not(RULES[path], kind, able) is not None


def _why_not(rule: Rule, kind: str, able: Mapping[str, str]) -> str | None:
    """None: it is carried out."""
    if isinstance(rule, Refused):
        return rule.why
    if isinstance(rule, Lacked):
        return rule.by.get(kind)
    if isinstance(rule, Needs):
        can, _, why = able.get(rule.feature, "no").partition(": ")
        return why if can == "no" else None
    return None
