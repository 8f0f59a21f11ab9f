"""From the flags of `run`, `create`, `pod create`… to specs: the flags, and the plain functions that read them."""

from __future__ import annotations

from typing import Any

import click

from drupe.cli import parse, parse_container, parse_network
from drupe.cli.options import apply, many, option
from drupe.errors import InvalidArgument
from drupe.spec import (
    ContainerSpec,
    DnsSpec,
    HealthCheck,
    IdMap,
    Mount,
    Namespaces,
    PodSpec,
    Resources,
    SecuritySpec,
    UserNamespace,
)
from drupe.spec.egress import parse_policy
from drupe.spec.units import parse_cpus, parse_size

_RATES = ("read_bps", "write_bps", "read_iops", "write_iops")


def entrypoint(text: str) -> tuple[str, ...]:
    """One program, as Docker takes it, or a JSON list; "" clears the image's entrypoint."""
    return parse.command(text) if text.startswith("[") else ((text,) if text else ())


resource_options = apply(
    option("-m", "--memory", parse=parse_size, metavar="SIZE", help="Memory limit."),
    option("--memory-swap", parse=parse.size_or_unlimited, metavar="SIZE", help="Memory plus swap; -1 for no limit."),
    option("--memory-reservation", parse=parse_size, metavar="SIZE", help="Soft memory limit."),
    option("--memory-swappiness", type=click.IntRange(0, 100), help="Tendency to swap."),
    click.option("--oom-kill-disable", is_flag=True, default=None, help="Pause instead of kill at the limit."),
    option("--cpus", parse=parse_cpus, metavar="N", help="Processors' worth of time."),
    option("--cpu-quota", type=int, metavar="US", help="Time in each period, µs."),
    option("--cpu-period", type=int, metavar="US", help="Length of a period, µs."),
    option("-c", "--cpu-shares", type=click.IntRange(2, 262144), metavar="N", help="Relative weight (1024)."),
    option("--cpuset-cpus", metavar="LIST", help="Processors to run on (0-2,4)."),
    option("--cpuset-mems", metavar="LIST", help="Memory nodes to use."),
    option("--pids-limit", type=int, metavar="N", help="Most tasks; -1 for no limit."),
    option("--blkio-weight", type=click.IntRange(10, 1000), metavar="N", help="Relative I/O weight."),
    many("--device-read-bps", parse=parse_container.io_rate, metavar="PATH:RATE", help="Read limit, bytes a second."),
    many("--device-write-bps", parse=parse_container.io_rate, metavar="PATH:RATE", help="Write limit, bytes a second."),
    many("--device-read-iops", parse=parse_container.io_rate, metavar="PATH:RATE", help="Read limit, calls a second."),
    many(
        "--device-write-iops", parse=parse_container.io_rate, metavar="PATH:RATE", help="Write limit, calls a second."
    ),
    many("--hugepages", parse=parse.pair, metavar="PAGE=SIZE", help="Limit of huge pages (2MB=64m)."),
)

pod_options = apply(
    option("--hostname", "-h", metavar="NAME", help="Host name."),
    many("--network", "--net", metavar="NET", help="none, host, bridge, NAME, cni:NAME or ns:/PATH."),
    many("--network-alias", metavar="NAME", help="A name that others of the network may look up."),
    option("--ip", parse=parse_network.ipv4, metavar="IP", help="IPv4 address."),
    option("--ip6", parse=parse_network.ipv6, metavar="IP", help="IPv6 address."),
    option("--mac-address", metavar="MAC", help="MAC address."),
    many("-p", "--publish", parse=parse_network.ports, metavar="[[IP:]HOST:]PORT[/PROTO]", help="Publish a port."),
    many("--dns", metavar="IP", help="DNS server."),
    many("--dns-search", metavar="DOMAIN", help="DNS search domain."),
    many("--dns-option", "--dns-opt", metavar="OPTION", help="Resolver option."),
    many("--add-host", parse=parse_network.host_entry, metavar="NAME:IP", help="A line for /etc/hosts."),
    many("--egress-allow", metavar="DEST", help="Destination that may be reached: CIDR, DNS name, any[,port=N]."),
    many("--egress-deny", metavar="DEST", help="Destination that may not be reached; tried before those allowed."),
    option("--egress-default", type=click.Choice(["allow", "deny"]), help="What holds for all others."),
    many("--sysctl", parse=parse.pair, metavar="NAME=VALUE", help="Kernel setting of the pod's namespaces."),
    option("--namespace", metavar="NAME", help="Namespace of the pod (default)."),
    option("--sandbox", "--runtime", default="", metavar="KIND", help="Kind of sandbox; auto: the strongest."),
    option("--userns", metavar="MODE", help="host, auto, or INSIDE:OUTSIDE:COUNT of ids."),
    option("--ipc", type=click.Choice(["private", "shareable", "pod", "host"]), help="IPC namespace."),
    option("--uts", type=click.Choice(["private", "pod", "host"]), help="UTS namespace."),
    option("--pid", type=click.Choice(["private", "container", "pod", "host"]), help="PID namespace."),
    option("--cgroup-parent", metavar="PATH", help="Parent cgroup."),
    option("--timeout", parse=parse.time_limit, metavar="DURATION", help="Kill the pod after so long (exit code 137)."),
)

container_options = apply(
    option("--name", metavar="NAME", help="Name."),
    many("-e", "--env", parse=parse.env, metavar="KEY[=VALUE]", help="Environment variable."),
    many("--env-file", metavar="FILE", help="File of environment variables."),
    many("-v", "--volume", parse=parse_container.volume, metavar="SRC:DST[:ro]", help="Bind mount or volume."),
    many("--mount", parse=parse_container.mount, metavar="type=…,src=…,dst=…", help="Mount."),
    many("--tmpfs", parse=parse_container.tmpfs, metavar="DST[:OPTIONS]", help="Memory file system."),
    option("-w", "--workdir", metavar="DIR", help="Working directory."),
    option("-u", "--user", metavar="USER[:GROUP]", help="User name or id."),
    many("--group-add", metavar="GROUP", help="Supplementary group."),
    option("--entrypoint", parse=entrypoint, metavar="COMMAND", help="Replace the entrypoint."),
    many("--cap-add", metavar="CAP", help="Capability to add."),
    many("--cap-drop", metavar="CAP", help="Capability to drop."),
    many("--security-opt", metavar="OPTION", help="seccomp=FILE|unconfined, no-new-privileges[=false]."),
    click.option("--privileged", is_flag=True, help="No isolation to speak of; not a sandbox."),
    click.option("--read-only", is_flag=True, help="Read-only root file system."),
    click.option("--init", is_flag=True, help="A tiny init that reaps orphans."),
    option("--restart", parse=parse_container.restart, metavar="POLICY", help="no, on-failure[:MAX], always…"),
    option("--health-cmd", metavar="COMMAND", help="Shell command that tells the health."),
    option("--health-interval", parse=parse.duration, metavar="DURATION", help="Time between checks."),
    option("--health-timeout", parse=parse.duration, metavar="DURATION", help="Deadline of a check."),
    option("--health-retries", type=int, metavar="N", help="Failures until unhealthy."),
    option("--health-start-period", parse=parse.duration, metavar="DURATION", help="Grace at the start."),
    click.option("--no-healthcheck", is_flag=True, help="No check, whatever the image says."),
    many(
        "--device", parse=parse_container.device, metavar="PATH[:DST][:rwm]", help="Device of the host; vfio=ADDRESS."
    ),
    many("--ulimit", parse=parse_container.ulimit, metavar="NAME=SOFT[:HARD]", help="Resource limit."),
    many("-l", "--label", parse=parse.label, metavar="KEY=VALUE", help="Label."),
    many("--annotation", parse=parse.label, metavar="KEY=VALUE", help="Annotation."),
    option("--log-driver", type=click.Choice(["cri", "json-file", "none"]), help="Form of the log."),
    many("--log-opt", metavar="KEY=VALUE", help="max-size, max-file, path."),
    option("--stop-signal", metavar="SIGNAL", help="Signal that asks for the end."),
    option("--stop-timeout", parse=parse.duration, metavar="DURATION", help="Grace before SIGKILL."),
    option("--shm-size", parse=parse_size, metavar="SIZE", help="Size of /dev/shm."),
    option("--oom-score-adj", type=click.IntRange(-1000, 1000), metavar="N", help="Preference of the OOM killer."),
    many("--secret", parse=parse_container.secret, metavar="id=NAME,src=FILE", help="File at /run/secrets/NAME."),
    click.option("-i", "--interactive", is_flag=True, help="Keep standard input open."),
    click.option("-t", "--tty", is_flag=True, help="Give it a terminal."),
)


def parse_env_files(paths: tuple[str, ...]) -> list[str]:
    """The variables of all --env-file values, in order."""
    return [line for path in paths for line in parse.env_file(path)]


def resources(flags: dict[str, Any]) -> Resources:
    """The limits among `flags`."""
    rates = {rate: flags.get(f"device_{rate}", ()) for rate in _RATES}
    return Resources(
        cpus=flags["cpus"],
        cpu_quota_us=flags["cpu_quota"],
        cpu_period_us=flags["cpu_period"],
        cpu_shares=flags["cpu_shares"],
        cpuset_cpus=flags["cpuset_cpus"],
        cpuset_mems=flags["cpuset_mems"],
        memory_bytes=flags["memory"],
        memory_swap_bytes=flags["memory_swap"],
        memory_reservation_bytes=flags["memory_reservation"],
        memory_swappiness=flags["memory_swappiness"],
        oom_kill_disable=flags["oom_kill_disable"],
        pids=flags["pids_limit"],
        io_weight=flags["blkio_weight"],
        io=parse_container.io_limits(**rates),
        hugepages={page: parse_size(limit) for page, limit in flags["hugepages"]},
    )


def container(flags: dict[str, Any], image: str, argv: tuple[str, ...]) -> ContainerSpec:
    """The container among `flags`."""
    mounts: tuple[Mount, ...] = (*flags["volume"], *flags["mount"], *flags["tmpfs"])
    return ContainerSpec(
        name=flags["name"],
        image=image,
        entrypoint=flags["entrypoint"],
        argv=argv,
        env=(*parse_env_files(flags["env_file"]), *flags["env"]),
        cwd=flags["workdir"],
        user=flags["user"],
        groups=flags["group_add"],
        tty=flags["tty"],
        stdin=flags["interactive"],
        read_only=flags["read_only"],
        init=flags["init"],
        labels=dict(flags["label"]),
        annotations=dict(flags["annotation"]),
        mounts=mounts,
        secrets=flags["secret"],
        devices=flags["device"],
        rlimits=flags["ulimit"],
        resources=resources(flags),
        security=_security(flags),
        restart=flags["restart"] or parse_container.restart("no"),
        health=_health(flags),
        log=parse_container.log(flags["log_driver"], flags["log_opt"]),
        stop_signal=flags["stop_signal"],
        oom_score_adj=flags["oom_score_adj"],
        **_given(flags, stop_grace_s="stop_timeout", shm_size_bytes="shm_size"),
    )


def _given(flags: dict[str, Any], **fields: str) -> dict[str, Any]:
    # Fields whose default lives in the spec are passed only when their flag was given.
    return {field: flags[flag] for field, flag in fields.items() if flags[flag] is not None}


def _security(flags: dict[str, Any]) -> SecuritySpec:
    return SecuritySpec(
        cap_add=flags["cap_add"],
        cap_drop=flags["cap_drop"],
        privileged=flags["privileged"],
        **parse_container.security(flags["security_opt"]),
    )


def _health(flags: dict[str, Any]) -> HealthCheck | None:
    options = _given(
        flags,
        interval_s="health_interval",
        timeout_s="health_timeout",
        retries="health_retries",
        start_period_s="health_start_period",
    )
    if flags["no_healthcheck"]:
        if flags["health_cmd"] is not None or options:
            raise InvalidArgument("--no-healthcheck excludes the other --health-* options")
        return HealthCheck(argv=())
    if flags["health_cmd"] is None:
        if options:
            raise InvalidArgument("--health-* without --health-cmd", hint="add --health-cmd COMMAND")
        return None
    return HealthCheck(argv=("/bin/sh", "-c", flags["health_cmd"]), **options)


def pod(flags: dict[str, Any], **more: Any) -> PodSpec:
    """The pod among `flags`; `more` are further fields of PodSpec."""
    return PodSpec(
        hostname=flags["hostname"],
        sandbox=flags["sandbox"],
        network=parse_network.network(
            flags["network"],
            policy=parse_policy(flags["egress_allow"], flags["egress_deny"], default=flags["egress_default"]),
            ipv4=flags["ip"],
            ipv6=flags["ip6"],
            mac=flags["mac_address"],
            aliases=flags["network_alias"],
        ),
        dns=DnsSpec(servers=flags["dns"], searches=flags["dns_search"], options=flags["dns_option"]),
        hosts=dict(flags["add_host"]),
        ports=tuple(port for ports in flags["publish"] for port in ports),
        sysctls=dict(flags["sysctl"]),
        namespaces=_namespaces(flags),
        cgroup_parent=flags["cgroup_parent"],
        timeout_s=flags["timeout"],
        **_given(flags, namespace="namespace"),
        **more,
    )


def _namespaces(flags: dict[str, Any]) -> Namespaces:
    ipc: Any = "host" if flags["ipc"] == "host" else "pod"
    uts: Any = "host" if flags["uts"] == "host" else "pod"
    pid: Any = flags["pid"] if flags["pid"] in ("pod", "host") else "container"
    return Namespaces(ipc=ipc, uts=uts, pid=pid, user=_userns(flags["userns"]))


def _userns(text: str | None) -> UserNamespace | None:
    if text in (None, "host"):
        return None
    if text in ("auto", "private"):
        return UserNamespace()
    numbers = [parse.integer(part, what="userns") for part in str(text).split(":")]
    if len(numbers) != 3:
        raise InvalidArgument(f"bad userns {text!r}", hint="write host, auto, or INSIDE:OUTSIDE:COUNT")
    ids = (IdMap(inside=numbers[0], outside=numbers[1], count=numbers[2]),)
    return UserNamespace(uids=ids, gids=ids)


def flags_given(ctx: click.Context, *, but: tuple[str, ...] = ()) -> list[str]:
    """The flags that the user wrote, as written in the help, without those called `but`."""
    return [
        max(param.opts, key=len)
        for param in ctx.command.params
        if param.name not in but
        and isinstance(param, click.Option)
        and ctx.get_parameter_source(str(param.name)) is click.core.ParameterSource.COMMANDLINE
    ]


def pod_flags_given(ctx: click.Context) -> list[str]:
    """The pod's own flags that the user wrote; they mean nothing for a container that joins a pod."""

    @click.command()
    @pod_options
    def probe() -> None: ...

    names = {param.name for param in probe.params} | {"publish_all"}
    return flags_given(ctx, but=tuple(str(param.name) for param in ctx.command.params if param.name not in names))


def spec_file(path: str) -> PodSpec:
    """A PodSpec from a JSON or TOML file ("-" is JSON on standard input); unknown keys and wrong types are refused."""
    import os
    import sys
    from pathlib import Path

    from drupe.cli import borrowed
    from drupe.spec import decode

    if path == "-" and os.isatty(0):
        borrowed.needs_own_process()
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}", cause=error.strerror or str(error)) from None
    return decode(PodSpec, _parse_file(path, data), where=path)


def _parse_file(path: str, data: bytes) -> Any:
    import json
    import tomllib

    try:
        return tomllib.loads(data.decode()) if path.endswith(".toml") else json.loads(data)
    except ValueError as error:
        raise InvalidArgument(f"{path} is not valid {'TOML' if path.endswith('.toml') else 'JSON'}: {error}") from None
