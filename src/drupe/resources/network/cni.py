"""CNI: a chain of plug-in programs gives the pod its network (CNI spec 0.3.1 to 1.1; ADD, CHECK, DEL)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from drupe.errors import DeadlineExceeded, DrupeError, HelperFailed, NotFound, Unsupported
from drupe.resources.network import cniconf
from drupe.resources.network.records import Attached, Keeper
from drupe.spec.base import Record
from drupe.spec.network import Attachment
from drupe.spec.pod import PodSpec
from drupe.spec.status import Endpoint, PublishedPort

_TIMEOUT_S = 60.0
_INCOMPATIBLE = 1  # error code: the plug-in does not speak the configuration's version
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NO_CHECK = ("0.3.0", "0.3.1")  # CHECK came with 0.4.0
_NO_RESULT_ON_DEL = _NO_CHECK  # and so did prevResult for DEL


class Chain(Record):
    """All that a later CHECK or DEL needs: journalled before ADD, with the result added after it."""

    conflist: dict[str, Any]
    interface: str
    bin_dirs: list[str]
    args: str
    runtime_config: dict[str, Any]
    result: dict[str, Any] | None = None


def plan(pod_id: str, pod_name: str, spec: PodSpec, ports: Sequence[PublishedPort]) -> Chain:
    """Reads the configuration and what the pod wants of it. Raises NotFound, InvalidArgument, Unsupported."""
    network = spec.network
    conflist = cniconf.load(network.cni_config, network.cni_config_dir)
    wanted = network.attachments[0] if network.attachments else Attachment()
    runtime_config = _runtime_config(spec, wanted, ports)
    for capability in runtime_config:
        if capability != "dns" and not cniconf.has_capability(conflist, capability):
            raise Unsupported(
                f"no plug-in of CNI network {conflist['name']} declares the capability {capability}",
                stage="network",
                hint='add "capabilities" to its configuration (portmap has portMappings, host-local ips, tuning mac)',
            )
    arguments = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": spec.namespace,
        "K8S_POD_NAME": pod_name,
        "K8S_POD_INFRA_CONTAINER_ID": pod_id,
        "K8S_POD_UID": spec.labels.get("io.kubernetes.pod.uid", pod_id),
    }
    chain = Chain(
        conflist=conflist,
        interface=wanted.interface or "eth0",
        bin_dirs=list(network.cni_bin_dirs),
        args=";".join(f"{key}={value}" for key, value in arguments.items()),
        runtime_config=runtime_config,
    )
    for plugin in conflist["plugins"]:
        _program(plugin["type"], chain.bin_dirs)
    return chain


async def add(keeper: Keeper, attached: Attached, chain: Chain) -> None:
    """ADD down the chain; `chain.result` is the last one's. Raises HelperFailed with the plug-in's words."""
    for index in range(len(chain.conflist["plugins"])):
        config = cniconf.for_plugin(chain.conflist, index, chain.runtime_config, chain.result)
        chain.result = await _call(keeper, "ADD", attached, chain, config)


async def check(keeper: Keeper, attached: Attached, chain: Chain) -> None:
    """CHECK down the chain, where version and configuration have it. Raises HelperFailed."""
    if chain.conflist["cniVersion"] in _NO_CHECK or chain.conflist.get("disableCheck") is True:
        return
    for index in range(len(chain.conflist["plugins"])):
        config = cniconf.for_plugin(chain.conflist, index, chain.runtime_config, chain.result)
        await _call(keeper, "CHECK", attached, chain, config)


async def delete(keeper: Keeper, attached: Attached, chain: Chain) -> None:
    """DEL up the chain, to its end even when one fails; then raises the first failure. Idempotent as plug-ins are."""
    failure: DrupeError | None = None
    previous = None if chain.conflist["cniVersion"] in _NO_RESULT_ON_DEL else chain.result
    for index in reversed(range(len(chain.conflist["plugins"]))):
        config = cniconf.for_plugin(chain.conflist, index, chain.runtime_config, previous)
        try:
            await _call(keeper, "DEL", attached, chain, config)
        except DrupeError as error:
            failure = failure or error
    if failure:
        raise failure


def endpoints(chain: Chain) -> list[Endpoint]:
    """The pod's interfaces according to the result; [] when it names none (then a scan tells)."""
    result = chain.result or {}
    found: dict[int, Endpoint] = {}
    for index, interface in enumerate(_dicts(result.get("interfaces"))):
        if interface.get("sandbox"):
            name, mac = str(interface.get("name", "")), str(interface.get("mac", ""))
            found[index] = Endpoint(network=chain.conflist["name"], interface=name, mac=mac)
    for address in _dicts(result.get("ips")):
        endpoint = found.get(address.get("interface", min(found, default=0)))
        if endpoint:
            _enter(endpoint, str(address.get("address", "")), str(address.get("gateway", "")))
    return list(found.values())


def dns(chain: Chain) -> tuple[list[str], list[str]]:
    """Name servers and search domains of the result."""
    said = (chain.result or {}).get("dns")
    said = said if isinstance(said, dict) else {}
    return [str(s) for s in said.get("nameservers") or ()], [str(s) for s in said.get("search") or ()]


def _enter(endpoint: Endpoint, address: str, gateway: str) -> None:
    try:
        version = ip_interface(address).version
    except ValueError:
        raise HelperFailed("a CNI plug-in answered a bad address", stage="network", cause=address) from None
    plain = address.partition("/")[0]
    if version == 4:
        endpoint.ipv4, endpoint.gateway4 = endpoint.ipv4 or plain, endpoint.gateway4 or gateway
    else:
        endpoint.ipv6, endpoint.gateway6 = endpoint.ipv6 or plain, endpoint.gateway6 or gateway


def _runtime_config(spec: PodSpec, wanted: Attachment, ports: Sequence[PublishedPort]) -> dict[str, Any]:
    """The capability arguments that the pod's spec asks for (CNI conventions, "well-known capabilities")."""
    found: dict[str, Any] = {}
    if ports:
        found["portMappings"] = [
            {"hostPort": p.host_port, "containerPort": p.container_port, "protocol": p.protocol, "hostIP": p.host_ip}
            for p in ports
        ]
    if addresses := [address for address in (wanted.ipv4, wanted.ipv6) if address]:
        found["ips"] = addresses
    if wanted.mac:
        found["mac"] = wanted.mac
    if wanted.aliases:
        found["aliases"] = list(wanted.aliases)
    if spec.dns.servers or spec.dns.searches:
        found["dns"] = {
            "servers": list(spec.dns.servers),
            "searches": list(spec.dns.searches),
            "options": list(spec.dns.options),
        }
    return found


async def _call(
    keeper: Keeper, command: str, attached: Attached, chain: Chain, config: dict[str, Any]
) -> dict[str, Any] | None:
    """One plug-in, one command; its result. Raises HelperFailed, DeadlineExceeded, NotFound."""
    program = _program(config["type"], chain.bin_dirs)
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": attached.pod_id,
        "CNI_NETNS": attached.netns,
        "CNI_IFNAME": chain.interface,
        "CNI_ARGS": chain.args,
        "CNI_PATH": ":".join(chain.bin_dirs),
        "PATH": _PATH,
    }
    what = f"CNI plug-in {config['type']} {command}"
    done = await keeper.run([program], env=env, stdin=json.dumps(config), timeout_s=_TIMEOUT_S)
    if done.timed_out:
        raise DeadlineExceeded(f"{what} took over {_TIMEOUT_S:g} s", stage="network")
    answer = _json(done.stdout)
    if done.exit and command == "DEL" and answer and answer.get("code") == _INCOMPATIBLE:
        return None  # it would not do ADD either, so there is nothing of it to delete
    if done.exit:
        said = [str(answer.get(key, "")) for key in ("msg", "details") if answer and answer.get(key)]
        cause = ": ".join(said) or (done.stderr or done.stdout).strip()[-500:] or f"exit code {done.exit}"
        raise HelperFailed(f"{what} failed", stage="network", cause=cause)
    if command == "ADD" and answer is None:
        raise HelperFailed(f"{what} answered no JSON", stage="network", cause=done.stdout[:200])
    return answer


def _program(kind: str, bin_dirs: Sequence[str]) -> str:
    for directory in bin_dirs:
        path = Path(directory) / kind
        if path.is_file():
            return str(path)
    where = ", ".join(bin_dirs) or "no directory"
    raise NotFound(
        f"no CNI plug-in {kind!r} in {where}", stage="network", hint="apt install containernetworking-plugins"
    )


def _json(text: str) -> dict[str, Any] | None:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
