from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Stream(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STDOUT: _ClassVar[Stream]
    STDERR: _ClassVar[Stream]
STDOUT: Stream
STDERR: Stream

class CheckRequest(_message.Message):
    __slots__ = ("protocol", "host_version")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    HOST_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    host_version: str
    def __init__(self, protocol: _Optional[int] = ..., host_version: _Optional[str] = ...) -> None: ...

class CheckResponse(_message.Message):
    __slots__ = ("protocol", "agent_version", "features", "kernel", "boot_id", "is_set_up", "processors", "memory_bytes")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    IS_SET_UP_FIELD_NUMBER: _ClassVar[int]
    PROCESSORS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    agent_version: str
    features: _containers.RepeatedScalarFieldContainer[str]
    kernel: str
    boot_id: str
    is_set_up: bool
    processors: int
    memory_bytes: int
    def __init__(self, protocol: _Optional[int] = ..., agent_version: _Optional[str] = ..., features: _Optional[_Iterable[str]] = ..., kernel: _Optional[str] = ..., boot_id: _Optional[str] = ..., is_set_up: _Optional[bool] = ..., processors: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class PutAwayResponse(_message.Message):
    __slots__ = ("code_begin", "code_end")
    CODE_BEGIN_FIELD_NUMBER: _ClassVar[int]
    CODE_END_FIELD_NUMBER: _ClassVar[int]
    code_begin: int
    code_end: int
    def __init__(self, code_begin: _Optional[int] = ..., code_end: _Optional[int] = ...) -> None: ...

class SetupRequest(_message.Message):
    __slots__ = ("hostname", "domainname", "machine_id", "resolv_conf", "hosts", "sysctls", "mounts", "interfaces", "routes", "clock_unix_ns", "entropy", "shm_size_bytes", "share_pid")
    class SysctlsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    DOMAINNAME_FIELD_NUMBER: _ClassVar[int]
    MACHINE_ID_FIELD_NUMBER: _ClassVar[int]
    RESOLV_CONF_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    SYSCTLS_FIELD_NUMBER: _ClassVar[int]
    MOUNTS_FIELD_NUMBER: _ClassVar[int]
    INTERFACES_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    CLOCK_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_FIELD_NUMBER: _ClassVar[int]
    SHM_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARE_PID_FIELD_NUMBER: _ClassVar[int]
    hostname: str
    domainname: str
    machine_id: str
    resolv_conf: bytes
    hosts: bytes
    sysctls: _containers.ScalarMap[str, str]
    mounts: _containers.RepeatedCompositeFieldContainer[GuestMount]
    interfaces: _containers.RepeatedCompositeFieldContainer[Interface]
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    clock_unix_ns: int
    entropy: bytes
    shm_size_bytes: int
    share_pid: bool
    def __init__(self, hostname: _Optional[str] = ..., domainname: _Optional[str] = ..., machine_id: _Optional[str] = ..., resolv_conf: _Optional[bytes] = ..., hosts: _Optional[bytes] = ..., sysctls: _Optional[_Mapping[str, str]] = ..., mounts: _Optional[_Iterable[_Union[GuestMount, _Mapping]]] = ..., interfaces: _Optional[_Iterable[_Union[Interface, _Mapping]]] = ..., routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ..., clock_unix_ns: _Optional[int] = ..., entropy: _Optional[bytes] = ..., shm_size_bytes: _Optional[int] = ..., share_pid: _Optional[bool] = ...) -> None: ...

class GuestMount(_message.Message):
    __slots__ = ("type", "source", "target", "options", "device")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    type: str
    source: str
    target: str
    options: _containers.RepeatedScalarFieldContainer[str]
    device: Device
    def __init__(self, type: _Optional[str] = ..., source: _Optional[str] = ..., target: _Optional[str] = ..., options: _Optional[_Iterable[str]] = ..., device: _Optional[_Union[Device, _Mapping]] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("disk_serial", "mac", "pci")
    DISK_SERIAL_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    PCI_FIELD_NUMBER: _ClassVar[int]
    disk_serial: str
    mac: str
    pci: str
    def __init__(self, disk_serial: _Optional[str] = ..., mac: _Optional[str] = ..., pci: _Optional[str] = ...) -> None: ...

class PutBundleRequest(_message.Message):
    __slots__ = ("id", "config_json", "rootfs", "writable_upper", "upper_size_bytes", "upper")
    ID_FIELD_NUMBER: _ClassVar[int]
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    ROOTFS_FIELD_NUMBER: _ClassVar[int]
    WRITABLE_UPPER_FIELD_NUMBER: _ClassVar[int]
    UPPER_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    UPPER_FIELD_NUMBER: _ClassVar[int]
    id: str
    config_json: bytes
    rootfs: _containers.RepeatedCompositeFieldContainer[GuestMount]
    writable_upper: bool
    upper_size_bytes: int
    upper: GuestMount
    def __init__(self, id: _Optional[str] = ..., config_json: _Optional[bytes] = ..., rootfs: _Optional[_Iterable[_Union[GuestMount, _Mapping]]] = ..., writable_upper: _Optional[bool] = ..., upper_size_bytes: _Optional[int] = ..., upper: _Optional[_Union[GuestMount, _Mapping]] = ...) -> None: ...

class PutBundleResponse(_message.Message):
    __slots__ = ("bundle", "rootfs")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    ROOTFS_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    rootfs: str
    def __init__(self, bundle: _Optional[str] = ..., rootfs: _Optional[str] = ...) -> None: ...

class ReadOutputRequest(_message.Message):
    __slots__ = ("id", "exec_id", "stream", "max_bytes", "offset")
    ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    id: str
    exec_id: str
    stream: Stream
    max_bytes: int
    offset: int
    def __init__(self, id: _Optional[str] = ..., exec_id: _Optional[str] = ..., stream: _Optional[_Union[Stream, str]] = ..., max_bytes: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class ReadOutputResponse(_message.Message):
    __slots__ = ("data", "end", "offset")
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    end: bool
    offset: int
    def __init__(self, data: _Optional[bytes] = ..., end: _Optional[bool] = ..., offset: _Optional[int] = ...) -> None: ...

class WriteInputRequest(_message.Message):
    __slots__ = ("id", "exec_id", "data", "close", "offset")
    ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    id: str
    exec_id: str
    data: bytes
    close: bool
    offset: int
    def __init__(self, id: _Optional[str] = ..., exec_id: _Optional[str] = ..., data: _Optional[bytes] = ..., close: _Optional[bool] = ..., offset: _Optional[int] = ...) -> None: ...

class ConnectRequest(_message.Message):
    __slots__ = ("port",)
    PORT_FIELD_NUMBER: _ClassVar[int]
    port: int
    def __init__(self, port: _Optional[int] = ...) -> None: ...

class ConnectResponse(_message.Message):
    __slots__ = ("exec_id",)
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    exec_id: str
    def __init__(self, exec_id: _Optional[str] = ...) -> None: ...

class DisconnectRequest(_message.Message):
    __slots__ = ("exec_id",)
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    exec_id: str
    def __init__(self, exec_id: _Optional[str] = ...) -> None: ...

class EventsRequest(_message.Message):
    __slots__ = ("after",)
    AFTER_FIELD_NUMBER: _ClassVar[int]
    after: int
    def __init__(self, after: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("number", "exit", "oom", "panic", "device_added", "device_removed")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    EXIT_FIELD_NUMBER: _ClassVar[int]
    OOM_FIELD_NUMBER: _ClassVar[int]
    PANIC_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ADDED_FIELD_NUMBER: _ClassVar[int]
    DEVICE_REMOVED_FIELD_NUMBER: _ClassVar[int]
    number: int
    exit: Exit
    oom: Oom
    panic: str
    device_added: str
    device_removed: str
    def __init__(self, number: _Optional[int] = ..., exit: _Optional[_Union[Exit, _Mapping]] = ..., oom: _Optional[_Union[Oom, _Mapping]] = ..., panic: _Optional[str] = ..., device_added: _Optional[str] = ..., device_removed: _Optional[str] = ...) -> None: ...

class Exit(_message.Message):
    __slots__ = ("id", "exec_id", "pid", "status", "at_unix_ns", "oom_killed")
    ID_FIELD_NUMBER: _ClassVar[int]
    EXEC_ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    OOM_KILLED_FIELD_NUMBER: _ClassVar[int]
    id: str
    exec_id: str
    pid: int
    status: int
    at_unix_ns: int
    oom_killed: bool
    def __init__(self, id: _Optional[str] = ..., exec_id: _Optional[str] = ..., pid: _Optional[int] = ..., status: _Optional[int] = ..., at_unix_ns: _Optional[int] = ..., oom_killed: _Optional[bool] = ...) -> None: ...

class Oom(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ProcessesRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ProcessesResponse(_message.Message):
    __slots__ = ("processes",)
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    processes: _containers.RepeatedCompositeFieldContainer[Process]
    def __init__(self, processes: _Optional[_Iterable[_Union[Process, _Mapping]]] = ...) -> None: ...

class Process(_message.Message):
    __slots__ = ("pid", "ppid", "uid", "command", "state", "rss_bytes", "cpu_ns", "started_unix_ns")
    PID_FIELD_NUMBER: _ClassVar[int]
    PPID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_NS_FIELD_NUMBER: _ClassVar[int]
    STARTED_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    pid: int
    ppid: int
    uid: int
    command: str
    state: str
    rss_bytes: int
    cpu_ns: int
    started_unix_ns: int
    def __init__(self, pid: _Optional[int] = ..., ppid: _Optional[int] = ..., uid: _Optional[int] = ..., command: _Optional[str] = ..., state: _Optional[str] = ..., rss_bytes: _Optional[int] = ..., cpu_ns: _Optional[int] = ..., started_unix_ns: _Optional[int] = ...) -> None: ...

class CopyChunk(_message.Message):
    __slots__ = ("id", "path", "data")
    ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    id: str
    path: str
    data: bytes
    def __init__(self, id: _Optional[str] = ..., path: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class CopyOutRequest(_message.Message):
    __slots__ = ("id", "path", "follow_symlink")
    ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_SYMLINK_FIELD_NUMBER: _ClassVar[int]
    id: str
    path: str
    follow_symlink: bool
    def __init__(self, id: _Optional[str] = ..., path: _Optional[str] = ..., follow_symlink: _Optional[bool] = ...) -> None: ...

class Interface(_message.Message):
    __slots__ = ("device", "name", "mac", "mtu", "addresses", "up")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    MTU_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    device: Device
    name: str
    mac: str
    mtu: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    up: bool
    def __init__(self, device: _Optional[_Union[Device, _Mapping]] = ..., name: _Optional[str] = ..., mac: _Optional[str] = ..., mtu: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ..., up: _Optional[bool] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("destination", "gateway", "interface", "source", "scope", "metric")
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    INTERFACE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    destination: str
    gateway: str
    interface: str
    source: str
    scope: int
    metric: int
    def __init__(self, destination: _Optional[str] = ..., gateway: _Optional[str] = ..., interface: _Optional[str] = ..., source: _Optional[str] = ..., scope: _Optional[int] = ..., metric: _Optional[int] = ...) -> None: ...

class SetInterfacesRequest(_message.Message):
    __slots__ = ("interfaces", "remove")
    INTERFACES_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    interfaces: _containers.RepeatedCompositeFieldContainer[Interface]
    remove: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, interfaces: _Optional[_Iterable[_Union[Interface, _Mapping]]] = ..., remove: _Optional[_Iterable[str]] = ...) -> None: ...

class SetRoutesRequest(_message.Message):
    __slots__ = ("routes",)
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    def __init__(self, routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ...) -> None: ...

class ListInterfacesResponse(_message.Message):
    __slots__ = ("interfaces", "routes")
    INTERFACES_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    interfaces: _containers.RepeatedCompositeFieldContainer[Interface]
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    def __init__(self, interfaces: _Optional[_Iterable[_Union[Interface, _Mapping]]] = ..., routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ...) -> None: ...

class MountRequest(_message.Message):
    __slots__ = ("mount", "id")
    MOUNT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    mount: GuestMount
    id: str
    def __init__(self, mount: _Optional[_Union[GuestMount, _Mapping]] = ..., id: _Optional[str] = ...) -> None: ...

class UnmountRequest(_message.Message):
    __slots__ = ("target", "id")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    target: str
    id: str
    def __init__(self, target: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class AwaitDeviceRequest(_message.Message):
    __slots__ = ("device", "gone", "timeout_ms")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    device: Device
    gone: bool
    timeout_ms: int
    def __init__(self, device: _Optional[_Union[Device, _Mapping]] = ..., gone: _Optional[bool] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class AwaitDeviceResponse(_message.Message):
    __slots__ = ("name", "major", "minor")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MAJOR_FIELD_NUMBER: _ClassVar[int]
    MINOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    major: int
    minor: int
    def __init__(self, name: _Optional[str] = ..., major: _Optional[int] = ..., minor: _Optional[int] = ...) -> None: ...

class SetOnlineRequest(_message.Message):
    __slots__ = ("processors", "memory_bytes", "timeout_ms")
    PROCESSORS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    processors: int
    memory_bytes: int
    timeout_ms: int
    def __init__(self, processors: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., timeout_ms: _Optional[int] = ...) -> None: ...

class SetOnlineResponse(_message.Message):
    __slots__ = ("processors", "memory_bytes")
    PROCESSORS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    processors: int
    memory_bytes: int
    def __init__(self, processors: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class SetClockRequest(_message.Message):
    __slots__ = ("unix_ns",)
    UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    unix_ns: int
    def __init__(self, unix_ns: _Optional[int] = ...) -> None: ...

class AddEntropyRequest(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class SetSysctlsRequest(_message.Message):
    __slots__ = ("sysctls",)
    class SysctlsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SYSCTLS_FIELD_NUMBER: _ClassVar[int]
    sysctls: _containers.ScalarMap[str, str]
    def __init__(self, sysctls: _Optional[_Mapping[str, str]] = ...) -> None: ...

class FreezeRequest(_message.Message):
    __slots__ = ("frozen",)
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    frozen: bool
    def __init__(self, frozen: _Optional[bool] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("entropy", "clock_unix_ns", "machine_id", "hostname", "interfaces", "routes", "resolv_conf", "hosts", "thaw")
    ENTROPY_FIELD_NUMBER: _ClassVar[int]
    CLOCK_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    MACHINE_ID_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    INTERFACES_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    RESOLV_CONF_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    THAW_FIELD_NUMBER: _ClassVar[int]
    entropy: bytes
    clock_unix_ns: int
    machine_id: str
    hostname: str
    interfaces: _containers.RepeatedCompositeFieldContainer[Interface]
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    resolv_conf: bytes
    hosts: bytes
    thaw: bool
    def __init__(self, entropy: _Optional[bytes] = ..., clock_unix_ns: _Optional[int] = ..., machine_id: _Optional[str] = ..., hostname: _Optional[str] = ..., interfaces: _Optional[_Iterable[_Union[Interface, _Mapping]]] = ..., routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ..., resolv_conf: _Optional[bytes] = ..., hosts: _Optional[bytes] = ..., thaw: _Optional[bool] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("renewed",)
    RENEWED_FIELD_NUMBER: _ClassVar[int]
    renewed: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, renewed: _Optional[_Iterable[str]] = ...) -> None: ...

class MetricsResponse(_message.Message):
    __slots__ = ("memory_total_bytes", "memory_available_bytes", "agent_rss_bytes", "cpu_busy_ns", "processes", "uptime_s")
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    AGENT_RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_BUSY_NS_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    memory_total_bytes: int
    memory_available_bytes: int
    agent_rss_bytes: int
    cpu_busy_ns: int
    processes: int
    uptime_s: float
    def __init__(self, memory_total_bytes: _Optional[int] = ..., memory_available_bytes: _Optional[int] = ..., agent_rss_bytes: _Optional[int] = ..., cpu_busy_ns: _Optional[int] = ..., processes: _Optional[int] = ..., uptime_s: _Optional[float] = ...) -> None: ...

class ShutdownRequest(_message.Message):
    __slots__ = ("timeout_ms", "reboot")
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    REBOOT_FIELD_NUMBER: _ClassVar[int]
    timeout_ms: int
    reboot: bool
    def __init__(self, timeout_ms: _Optional[int] = ..., reboot: _Optional[bool] = ...) -> None: ...
