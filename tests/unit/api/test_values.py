"""Value objects and the small languages: good forms, and one clear line for each bad one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from drupe import AsyncSandbox, InvalidArgument, Mount, Network, Port, Secret, spec
from drupe.api.specs import env_words
from drupe.spec.egress import parse_policy, parse_rule
from drupe.spec.units import parse_cpus, parse_size


def test_an_environment_is_what_it_says() -> None:
    assert env_words({"A": "1=2", "B": ""}) == ("A=1=2", "B=")
    with pytest.raises(InvalidArgument, match="'A=B' has a = in its name"):
        env_words({"A=B": "1"})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (77, 77),
        ("512", 512),
        ("64k", 65536),
        ("256M", 256 << 20),
        ("1.5g", 3 << 29),
        ("32MiB", 32 << 20),
        ("1 GB", 1 << 30),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1x", "1.2.3g", "1e3", -1, True, None, 1.5])
def test_bad_sizes(text: object) -> None:
    with pytest.raises(InvalidArgument, match="bad size"):
        parse_size(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "cpus"), [(1, 1.0), (0.5, 0.5), ("2", 2.0), ("150%", 1.5)])
def test_cpus(text: str | float, cpus: float) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize("text", ["", "x", 0, -1, "0%", "nan", "inf", None])
def test_bad_cpus(text: object) -> None:
    with pytest.raises(InvalidArgument, match="bad number of processors"):
        parse_cpus(text)  # type: ignore[arg-type]


def test_values_are_specs_and_travel_as_such() -> None:
    pairs: list[tuple[object, type]] = [
        (Port(80, 8080, "udp"), spec.PortMapping),
        (Secret("token", "s3cret"), spec.Secret),
        (Mount.bind("/a", "/b", read_only=True), spec.Mount),
        (Network.bridge("blue", allow=["10.0.0.0/8"], aliases=["db"]), spec.NetworkSpec),
    ]
    for value, kind in pairs:
        assert isinstance(value, kind)
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=kind)
        assert msgspec.to_builtins(again) == msgspec.to_builtins(value)


def test_secrets_do_not_show() -> None:
    assert "s3cret" not in repr(Secret("token", "s3cret")) and Secret("token", "s3cret").value == b"s3cret"


def test_mounts() -> None:
    assert Mount.bind("x", "/y").source == str(Path.cwd() / "x")
    assert Mount.tmpfs("/t", size="1m").size_bytes == 1 << 20
    assert Mount.volume("v", "/v").type == "volume" and Mount.image("i", "/i").read_only


def test_networks() -> None:
    assert Network.none().mode == "none" and Network.none().attachments == ()
    assert Network.host().mode == "host" and Network.cni("net").cni_config == "net"
    assert Network.join("/run/netns/x").netns_path == "/run/netns/x"
    assert Network.bridge().policy is None


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("none", Network.none()),
        ("host", Network.host()),
        ("bridge", Network.bridge()),
        ("blue", Network.bridge("blue")),
        ("cni:net", Network.cni("net")),
        ("ns:/run/netns/x", Network.join("/run/netns/x")),
    ],
)
def test_networks_in_the_words_of_the_command_line(text: str, same: Network) -> None:
    assert Network.parse(text) == same
    assert AsyncSandbox("busybox", network=text).spec.network == same
    assert spec.PodSpec().network == AsyncSandbox("busybox").spec.network


@pytest.mark.parametrize("bad", ["", "bogus:x", "ns:relative", "cni:", 5])
def test_bad_networks(bad: object) -> None:
    with pytest.raises(InvalidArgument, match="bad network") as raised:
        AsyncSandbox("busybox", network=bad)  # type: ignore[arg-type]
    assert raised.value.hint


def test_policy_defaults() -> None:
    allowed, denied = parse_policy(["any"]), parse_policy(deny=["any"])
    assert allowed and allowed.default == "deny" and denied and denied.default == "allow"
    both = parse_policy(["10.0.0.0/8"], ["10.1.0.0/16"], default="allow")
    assert both and both.default == "allow" and [rule.action for rule in both.rules] == ["deny", "allow"]


def test_rules() -> None:
    rule = parse_rule("allow", "*.example.org,port=443,port=8000-8100,proto=tcp")
    assert (rule.dns, rule.cidr, rule.ports, rule.protocol) == ("*.example.org", None, ("443", "8000-8100"), "tcp")
    assert parse_rule("deny", "2001:db8::/32").cidr == "2001:db8::/32"
    assert parse_rule("deny", "192.0.2.1").cidr == "192.0.2.1/32"
    assert parse_rule("deny", "any").cidr is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.1/8",
        "300.1.1.1",
        "a..b",
        "-x",
        "example.org,port=0",
        "example.org,port=9-1",
        "any,proto=icmp",
        "any,x=1",
        "a b",
    ],
)
def test_bad_rules(text: str) -> None:
    with pytest.raises(InvalidArgument, match="egress rule"):
        parse_rule("allow", text)


def test_ports() -> None:
    assert Port.parse("80") == Port(80)
    assert Port.parse("8080:80/udp") == Port(80, 8080, "udp")
    assert Port.parse("[::1]:8080:80") == Port(80, 8080, "tcp", "::1")


@pytest.mark.parametrize("text", ["", "x", "80:", ":80x", "80/icmp", "a:80", "1:2:3:x"])
def test_bad_ports(text: str) -> None:
    with pytest.raises(InvalidArgument, match="port"):
        Port.parse(text)
