"""The words of the field as value objects: specs go in, records come out. No I/O."""

from drupe.spec.base import Record, Spec, decode, plain, to_json
from drupe.spec.container import (
    ContainerSpec,
    Device,
    ExecSpec,
    HealthCheck,
    Hook,
    Hooks,
    LogSpec,
    Mount,
    RestartPolicy,
    Rlimit,
    Secret,
    SecuritySpec,
)
from drupe.spec.network import (
    Attachment,
    DnsSpec,
    EgressPolicy,
    EgressRule,
    NetworkSpec,
    PortMapping,
)
from drupe.spec.pod import IdMap, Namespaces, PodSpec, UserNamespace
from drupe.spec.resources import IoLimit, Resources
from drupe.spec.status import (
    ContainerStatus,
    Endpoint,
    Event,
    ExitStatus,
    PodStatus,
    ProcessInfo,
    PublishedPort,
    Stats,
)

__all__ = [
    "Attachment", "ContainerSpec", "ContainerStatus", "Device", "DnsSpec", "EgressPolicy", "EgressRule", "Endpoint",
    "Event", "ExecSpec", "ExitStatus", "HealthCheck", "Hook", "Hooks", "IdMap", "IoLimit", "LogSpec", "Mount",
    "Namespaces", "NetworkSpec", "PodSpec", "PodStatus", "PortMapping", "ProcessInfo", "PublishedPort", "Record",
    "Resources", "RestartPolicy", "Rlimit", "Secret", "SecuritySpec", "Spec", "Stats", "UserNamespace", "decode",
    "plain", "to_json",
]
