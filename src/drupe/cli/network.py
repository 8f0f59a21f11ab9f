"""`drupe network …`: the built-in bridge networks."""

from __future__ import annotations

import click

from drupe.cli import connection, parse, parse_network
from drupe.cli.group import LazyGroup, Verb
from drupe.cli.lifecycle import for_each
from drupe.cli.options import format_option, json_option, many, option, quiet_option, refs
from drupe.cli.output import show_list
from drupe.cli.prune import prune as run_prune
from drupe.spec import Attachment
from drupe.spec.control import ListFilter, NetworkCreate, NetworkInfo, Prune, Ref
from drupe.spec.membership import NetworkConnect, NetworkDisconnect

VERBS: dict[str, Verb] = {
    "create": Verb("network:create", "Create a network"),
    "ls": Verb("network:ls", "List networks"),
    "inspect": Verb("inspect:networks", "Show all that is known of networks"),
    "connect": Verb("network:connect", "Have a running pod join a network"),
    "disconnect": Verb("network:disconnect", "Have a running pod leave a network"),
    "rm": Verb("network:rm", "Remove networks"),
    "prune": Verb("network:prune", "Remove networks that no pod uses"),
}

network = LazyGroup("network", VERBS, help="Networks.")


@click.command("create")
@option("--subnet", "--subnet4", "subnet4", default="", metavar="CIDR", help="IPv4 subnet (a free one).")
@option("--subnet6", default="", metavar="CIDR", help="IPv6 subnet (a free one).")
@option("--gateway", default="", metavar="IP", help="IPv4 address of the bridge.")
@click.option("--ipv6/--no-ipv6", default=True, help="IPv6 too (default).")
@click.option("--internal", is_flag=True, help="No way out.")
@option("--mtu", parse=parse_network.mtu, default="1500", metavar="BYTES", help="MTU.", show_default=True)
@click.option("--dns/--no-dns", default=True, help="Look up names between its pods (default).")
@many("-l", "--label", parse=parse.label, metavar="KEY=VALUE", help="Label.")
@click.argument("name")
def create(
    *,
    name: str,
    subnet4: str,
    subnet6: str,
    gateway: str,
    ipv6: bool,
    internal: bool,
    mtu: int,
    dns: bool,
    label: tuple[tuple[str, str], ...],
) -> None:
    """Create a bridge network and print its name."""
    request = NetworkCreate(
        name=name,
        subnet4=subnet4,
        subnet6=subnet6,
        gateway4=gateway,
        ipv6=ipv6,
        internal=internal,
        mtu=mtu,
        dns=dns,
        labels=dict(label),
    )
    click.echo(connection.call("network.create", request).name)


@click.command("ls")
@quiet_option
@json_option
@format_option
def ls(*, quiet: bool, as_json: bool, template: str | None) -> None:
    """List networks."""
    networks: list[NetworkInfo] = connection.call("network.list", ListFilter()).networks

    def row(n: NetworkInfo) -> tuple[object, ...]:
        return n.name, n.bridge, n.subnet4 or "-", n.subnet6 or "-", "yes" if n.internal else "no", len(n.pods)

    headers = ("NAME", "BRIDGE", "IPV4", "IPV6", "INTERNAL", "PODS")
    show_list(
        networks, as_json=as_json, quiet=quiet, name=lambda n: n.name, headers=headers, row=row, template=template
    )


@click.command("connect")
@option("--ip", parse=parse_network.ipv4, metavar="IP", help="IPv4 address.")
@option("--ip6", parse=parse_network.ipv6, metavar="IP", help="IPv6 address.")
@option("--mac-address", metavar="MAC", help="MAC address.")
@option("--interface", metavar="NAME", help="Name of the interface (the next free ethN).")
@many("--alias", metavar="NAME", help="A name that others of the network may look up.")
@click.argument("name", metavar="NETWORK")
@click.argument("ref", metavar="POD")
def connect(
    *, name: str, ref: str, ip: str | None, ip6: str | None, mac_address: str | None, interface: str | None,
    alias: tuple[str, ...],
) -> None:  # fmt: skip
    """Have a running pod (named itself or by a container) join a network."""
    wanted = Attachment(network=name, ipv4=ip, ipv6=ip6, mac=mac_address, interface=interface, aliases=alias)
    connection.call("network.connect", NetworkConnect(ref=ref, attachment=wanted))


@click.command("disconnect")
@click.argument("name", metavar="NETWORK")
@click.argument("ref", metavar="POD")
def disconnect(*, name: str, ref: str) -> None:
    """Have a running pod leave a network."""
    connection.call("network.disconnect", NetworkDisconnect(ref=ref, network=name))


@click.command("rm")
@refs("network")
def rm(*, refs: tuple[str, ...]) -> int:
    """Remove networks that no pod uses."""
    return for_each(refs, lambda client, ref: client.call("network.delete", Ref(ref=ref)) and None)


@click.command("prune")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@json_option
def prune(*, force: bool, as_json: bool) -> None:
    """Remove all networks that no pod uses."""
    run_prune("network.prune", Prune(), what="all networks that no pod uses", force=force, as_json=as_json)
