"""Every field of every spec asks for a named feature, or says why every kind honours it; `needed` is exact."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
import pytest

from drupe.api.values import Network
from drupe.errors import Unsupported
from drupe.sandboxers import fields
from drupe.sandboxers.capabilities import (
    for_platform,
    needed,
    needed_by_addition,
    needed_by_exec,
    needed_by_update,
    refuse_unless_able,
)
from drupe.sandboxers.features import FEATURES
from drupe.sandboxers.fields import RULES, UNSEEN, WHOLE, Everywhere, Inside
from drupe.spec import container, network, pod, resources
from drupe.spec.base import Spec
from drupe.spec.container import ContainerSpec, ExecSpec, HealthCheck, Mount, SecuritySpec
from drupe.spec.network import NetworkSpec
from drupe.spec.pod import Namespaces, PodSpec
from drupe.spec.resources import Resources


def structs() -> list[type[Spec]]:
    """Every struct a pod's or an exec's spec is made of."""
    found = []
    for module in (pod, container, network, resources):
        for _, thing in inspect.getmembers(module, inspect.isclass):
            if issubclass(thing, Spec) and thing is not Spec and thing.__module__ == module.__name__:
                found.append(thing)
    return found


def test_each_struct_stands_in_one_table() -> None:
    known = [*RULES, *WHOLE, *UNSEEN]
    assert len(known) == len(set(known))
    assert set(known) == set(structs())


@pytest.mark.parametrize("struct", RULES, ids=lambda s: s.__name__)
def test_each_field_has_a_rule(struct: type[Spec]) -> None:
    """A field that is added to a spec has to say which feature it asks for, or why every kind honours it."""
    assert set(RULES[struct]) == set(struct.__struct_fields__)
    for name, rule in RULES[struct].items():
        assert callable(rule) or isinstance(rule, Inside) or (isinstance(rule, Everywhere) and rule.why) or (
            rule in FEATURES
        ), name  # fmt: skip


def test_structs_that_are_asked_for_as_a_whole_belong_to_features() -> None:
    assert set(WHOLE.values()) <= set(FEATURES)
    assert all(UNSEEN.values())


def test_a_spec_that_asks_for_nothing_needs_its_network_only() -> None:
    """Defaults ask for nothing: only the bridge is there unasked."""
    assert needed(PodSpec(containers=(ContainerSpec(image="x"),))) == {"network"}
    assert needed(PodSpec(network=NetworkSpec(mode="none"))) == set()
    assert needed_by_exec(ExecSpec(argv=("true",))) == {"exec"}
    assert needed_by_update(Resources()) == {"update"}


# a value other than the default for each field whose rule is a feature's name
CHANGED: dict[tuple[type, str], Any] = {
    (pod.PodSpec, "hostname"): "web",
    (pod.PodSpec, "dns"): network.DnsSpec(servers=("10.0.0.1",)),
    (pod.PodSpec, "hosts"): {"a": "10.0.0.1"},
    (pod.PodSpec, "ports"): (network.PortMapping(container_port=80),),
    (pod.PodSpec, "sysctls"): {"net.ipv4.ip_forward": "1"},
    (pod.PodSpec, "hooks"): container.Hooks(prestart=(container.Hook(path="/bin/true"),)),
    (pod.Namespaces, "user"): pod.UserNamespace(),
    (network.NetworkSpec, "policy"): network.EgressPolicy(),
    (container.ContainerSpec, "groups"): ("audio",),
    (container.ContainerSpec, "secrets"): (container.Secret(name="a", value=b""),),
    (container.ContainerSpec, "devices"): (container.Device(path="/dev/null"),),
    (container.ContainerSpec, "rlimits"): (container.Rlimit(name="nofile", soft=1, hard=1),),
    (container.ContainerSpec, "hooks"): container.Hooks(poststop=(container.Hook(path="/bin/true"),)),
    (container.ContainerSpec, "health"): HealthCheck(argv=("true",)),
    (container.ContainerSpec, "shm_size_bytes"): 1,
    (container.Mount, "propagation"): "rshared",
    (container.Mount, "options"): ("noexec",),
    (container.SecuritySpec, "cap_add"): ("NET_ADMIN",),
    (container.SecuritySpec, "cap_drop"): ("ALL",),
    (container.SecuritySpec, "no_new_privileges"): False,
    (container.SecuritySpec, "masked_paths"): (),
    (container.SecuritySpec, "read_only_paths"): (),
    (container.ExecSpec, "cap_add"): ("NET_ADMIN",),
    (container.ExecSpec, "no_new_privileges"): False,
    (resources.Resources, "io"): (resources.IoLimit(path="/dev/vda", read_bps=1),),
    (resources.Resources, "hugepages"): {"2MB": 1},
    (resources.Resources, "unified"): {"memory.high": "1"},
}
BY_NAME = [(struct, name) for struct, rules in RULES.items() for name, rule in rules.items() if isinstance(rule, str)]


@pytest.mark.parametrize(("struct", "name"), BY_NAME, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_a_field_that_is_set_asks_for_its_feature(struct: type[Spec], name: str) -> None:
    required = {"argv": ("true",), "target": "/a"}
    base = {key: value for key, value in required.items() if key in struct.__struct_fields__}
    field = next(f for f in msgspec.structs.fields(struct) if f.name == name)
    value = CHANGED.get((struct, name), _other(field.type))
    plain, changed = struct(**base), struct(**base | {name: value})
    assert set(fields.asked(changed)) - set(fields.asked(plain)) == {RULES[struct][name]}


def _other(type_: Any) -> Any:
    text = str(type_)
    return True if "bool" in text else 7 if "int" in text or "float" in text else "other"


@pytest.mark.parametrize(
    ("spec", "features"),
    [
        (PodSpec(namespaces=Namespaces(pid="host", ipc="host", uts="host")), {"host-pid", "host-ipc", "host-uts"}),
        (PodSpec(namespaces=Namespaces(pid="pod")), {"shared-pid"}),
        (PodSpec(network=NetworkSpec(mode="host")), {"host-network"}),
        (PodSpec(network=NetworkSpec(mode="path", netns_path="/x")), {"network"}),
        (PodSpec(containers=(ContainerSpec(), ContainerSpec())), {"multi-container"}),
        (PodSpec(containers=(ContainerSpec(annotations={container.IDLE: "true"}),)), {"idle"}),
    ],
)
def test_what_a_pod_asks_for_by_a_word(spec: PodSpec, features: set[str]) -> None:
    assert needed(spec) - {"network"} == features - {"network"}
    assert features <= needed(spec)


@pytest.mark.parametrize(
    ("type_", "feature"),
    [("bind", "bind-mounts"), ("volume", "volumes"), ("tmpfs", "tmpfs"), ("image", "image-mounts")],
)
def test_mounts_by_type(type_: Any, feature: str) -> None:
    assert needed_by_addition(ContainerSpec(mounts=(Mount(target="/a", type=type_),)), ()) == {feature}


def test_seccomp_by_profile() -> None:
    def asked(profile: str) -> set[str]:
        return needed_by_addition(ContainerSpec(security=SecuritySpec(seccomp=profile)), ())

    assert (asked("default"), asked("unconfined"), asked("/a.json")) == (set(), {"seccomp-unconfined"}, {"seccomp"})


def test_limits_of_one_among_several_containers() -> None:
    limited, free = ContainerSpec(resources=Resources(pids=9)), ContainerSpec()
    assert needed_by_addition(limited, ()) == {"pids-limit"}
    assert needed_by_addition(limited, (free,)) == {"pids-limit", "multi-container", "container-limits"}
    assert needed_by_addition(free, (limited,)) == {"multi-container", "container-limits"}
    assert needed(PodSpec(containers=(limited, free))) >= {"container-limits", "multi-container"}


def test_platforms() -> None:
    assert [for_platform(os) for os in ("linux", "wasi", "wasip1", "")] == [
        "linux-programs", "wasm-modules", "wasm-modules", "linux-programs",
    ]  # fmt: skip


def test_the_refusal_names_kind_feature_and_reason() -> None:
    able = {"tty": "no: a module has no terminal", "exec": "limited: modules of the image only"}
    refuse_unless_able("wasm", able, {"exec"})
    with pytest.raises(Unsupported, match="wasm sandboxes cannot give a process a terminal") as caught:
        refuse_unless_able("wasm", able, {"exec", "tty"})
    assert caught.value.details == {"kind": "wasm", "feature": "tty"}
    assert caught.value.cause == "a module has no terminal"
    with pytest.raises(Unsupported, match="not declared"):
        refuse_unless_able("wasm", {}, {"exec"})


def test_a_value_object_of_the_api_counts_as_its_spec() -> None:
    """Embedded, a spec goes to the core as the program made it, and `drupe.Network` is a subclass."""
    assert needed(PodSpec(network=Network.none())) == needed(PodSpec(network=NetworkSpec(mode="none", attachments=())))
