"""`drupe pod …`: virtcontainers' pod calls: create, start, run, stop, pause, resume, status, list, delete a pod."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
import msgspec

from drupe.cli import connection, parse, podspec
from drupe.cli.group import LazyGroup, Verb
from drupe.cli.lifecycle import for_each, signal_name
from drupe.cli.options import apply, format_option, json_option, many, option, quiet_option, refs
from drupe.cli.output import ago, show_json, show_list, show_table
from drupe.cli.ps import format_ports, read_filters
from drupe.errors import InvalidArgument
from drupe.spec import PodSpec, PodStatus, Stats
from drupe.spec.control import Delete, Kill, ListFilter, PodCreate, PodRun, Ref, Stop, Wait

if TYPE_CHECKING:
    from drupe.rpc.client import Client

VERBS: dict[str, Verb] = {
    "create": Verb("pod:create", "Create a pod, empty or from a file"),
    "start": Verb("pod:start", "Start pods and their containers"),
    "run": Verb("pod:run", "Create and start a pod"),
    "stop": Verb("pod:stop", "Stop pods and their containers"),
    "kill": Verb("pod:kill", "Send a signal to all containers of pods"),
    "pause": Verb("pod:pause", "Freeze pods"),
    "unpause": Verb("pod:resume", "Thaw pods"),
    "resume": Verb("pod:resume", "Thaw pods"),
    "wait": Verb("pod:wait", "Wait for pods to end"),
    "ls": Verb("pod:ls", "List pods"),
    "ps": Verb("pod:ls", "List pods (same as ls)"),
    "inspect": Verb("inspect:pods", "Show all that is known of pods"),
    "status": Verb("inspect:pods", "Show all that is known of pods (same as inspect)"),
    "stats": Verb("pod:stats", "Show the resource use of pods"),
    "update": Verb("update:update_pod", "Change the limits of pods"),
    "rm": Verb("pod:rm", "Remove pods and their containers"),
}

pod = LazyGroup("pod", VERBS, help="Pods: one sandbox, one or many containers.")

_spec_options = apply(
    option("-f", "--file", "path", metavar="FILE", help="PodSpec as JSON or TOML; - is JSON on standard input."),
    option("--name", metavar="NAME", help="Name."),
    many("-l", "--label", parse=parse.label, metavar="KEY=VALUE", help="Label."),
    many("--annotation", parse=parse.label, metavar="KEY=VALUE", help="Annotation."),
    podspec.pod_options,
    podspec.resource_options,
)


@click.command("create")
@_spec_options
@click.argument("pod_name", metavar="[NAME]", required=False)
@click.pass_context
def create(ctx: click.Context, /, *, pod_name: str | None, path: str | None, **flags: Any) -> None:
    """Create a pod and print its id. Flags make an empty one, to join with `drupe run --pod NAME`."""
    spec = _spec(ctx, path, pod_name, flags)
    click.echo(connection.call("pod.create", PodCreate(spec=spec)).id)


@click.command("run")
@_spec_options
@click.argument("pod_name", metavar="[NAME]", required=False)
@click.pass_context
def run(ctx: click.Context, /, *, pod_name: str | None, path: str | None, **flags: Any) -> None:
    """Create and start a pod and print its id."""
    spec = _spec(ctx, path, pod_name, flags)
    click.echo(connection.call("pod.run", PodRun(spec=spec)).id)


def _spec(ctx: click.Context, path: str | None, pod_name: str | None, flags: dict[str, Any]) -> PodSpec:
    if pod_name and flags["name"]:
        raise InvalidArgument("the name is given twice")
    name = pod_name or flags["name"]
    if path is None:
        labels, annotations = dict(flags["label"]), dict(flags["annotation"])
        limits = podspec.resources(flags)
        return podspec.pod(flags, name=name, labels=labels, annotations=annotations, resources=limits)
    others = podspec.flags_given(ctx, but=("path", "name", "pod_name"))
    if others:
        raise InvalidArgument(f"{', '.join(others)} can't be given with --file", hint="write it into the file")
    spec = podspec.spec_file(path)
    return msgspec.structs.replace(spec, name=name) if name else spec


def _each(name: str, method: str, help: str) -> click.Command:
    @click.command(name, help=help)
    @refs("pod")
    def command(refs: tuple[str, ...]) -> int:
        return for_each(refs, _call(lambda ref: (method, Ref(ref=ref))))

    return command


def _call(request: Callable[[str], tuple[str, Any]]) -> Callable[[Client, str], None]:
    def act(client: Client, ref: str) -> None:
        client.call(*request(ref))

    return act


start = _each("start", "pod.start", "Start pods and their containers.")
pause = _each("pause", "pod.pause", "Freeze all processes of pods.")
resume = _each("resume", "pod.resume", "Let paused pods go on.")


@click.command("stop")
@option("-t", "--time", "--timeout", "timeout_s", parse=parse.duration, metavar="DURATION", help="Grace.")
@refs("pod")
def stop(*, timeout_s: float | None, refs: tuple[str, ...]) -> int:
    """Stop pods and their containers."""
    force = timeout_s == 0
    return for_each(refs, _call(lambda ref: ("pod.stop", Stop(ref=ref, timeout_s=timeout_s, force=force))))


@click.command("kill")
@option("-s", "--signal", "name", parse=signal_name, default="KILL", metavar="SIGNAL", help="Signal (KILL).")
@refs("pod")
def kill(*, name: str, refs: tuple[str, ...]) -> int:
    """Send a signal to every process of all running containers of pods."""

    def act(client: Client, ref: str) -> None:
        for container in client.call("pod.status", Ref(ref=ref)).containers:
            if container.state in ("running", "paused"):
                client.call("container.kill", Kill(ref=container.id, signal=name, all=True))

    return for_each(refs, act)


@click.command("wait")
@option("--timeout", "timeout_s", parse=parse.duration, metavar="DURATION", help="Give up after so long.")
@refs("pod")
def wait(*, timeout_s: float | None, refs: tuple[str, ...]) -> int:
    """Wait until pods end and print their exit codes."""
    return for_each(refs, lambda client, ref: str(client.call("pod.wait", Wait(ref=ref, timeout_s=timeout_s)).code))


@click.command("ls")
@many("-f", "--filter", "filters", metavar="KEY=VALUE", help="label=K[=V], status=STATE, name=TEXT, namespace=NAME.")
@quiet_option
@json_option
@format_option
def ls(*, filters: tuple[str, ...], quiet: bool, as_json: bool, template: str | None) -> None:
    """List pods."""
    query, name = read_filters(filters)
    request = ListFilter(labels=query.labels, states=query.states, namespace=query.namespace)
    pods: list[PodStatus] = [p for p in connection.call("pod.list", request).pods if name in p.name]

    def row(p: PodStatus) -> tuple[object, ...]:
        addresses = ", ".join(e.ipv4 or e.ipv6 for e in p.endpoints if e.ipv4 or e.ipv6)
        alive = sum(c.state in ("running", "paused") for c in p.containers)
        count = f"{alive}/{len(p.containers)}"
        return p.id[:12], p.name, p.sandbox, p.state, count, ago(p.created_at), addresses, format_ports(p.ports)

    headers = ("POD ID", "NAME", "SANDBOX", "STATE", "RUNNING", "CREATED", "ADDRESS", "PORTS")
    show_list(pods, as_json=as_json, quiet=quiet, name=lambda p: p.id, headers=headers, row=row, template=template)


@click.command("stats")
@json_option
@refs("pod", required=False)
def stats(*, as_json: bool, refs: tuple[str, ...]) -> None:
    """Show the resource use of PODs, or of all that run, once. --json: one object a line."""
    from drupe.cli.stats import counters

    with connection.connect() as client:
        wanted = refs or tuple(p.id for p in client.call("pod.list", ListFilter(states=("running", "paused"))).pods)
        found: list[tuple[PodStatus, Stats]] = [
            (client.call("pod.status", Ref(ref=ref)), client.call("pod.stats", Ref(ref=ref))) for ref in wanted
        ]
    if as_json:
        for status, sample in found:
            show_json({"id": status.id, "name": status.name, "stats": sample})
        sys.stdout.flush()
    else:
        headers = (
            "POD ID",
            "NAME",
            "CPU TIME",
            "MEMORY / LIMIT",
            "MEM %",
            "NET IN / OUT",
            "BLOCK READ / WRITE",
            "PIDS",
        )
        rows = [(p.id[:12], p.name, f"{s.cpu_usage_ns / 1e9:.2f} s", *counters(s)) for p, s in found]
        show_table(headers, rows)


@click.command("rm")
@click.option("-f", "--force", is_flag=True, help="Stop them first.")
@refs("pod")
def rm(*, force: bool, refs: tuple[str, ...]) -> int:
    """Remove pods and their containers."""
    return for_each(refs, _call(lambda ref: ("pod.delete", Delete(ref=ref, force=force))))
