"""The table of fields that programs overlook, and versions as they print them."""

from __future__ import annotations

import pytest

from drupe.errors import InvalidArgument, Unsupported
from drupe.oci.honoured import FIELDS, for_older_crun, parse_version, refuse_unhonoured, takes_spec_version
from drupe.oci.runtime_spec import RuntimeConfig, parse

MAPPING = '{"containerID": 0, "hostID": 1, "size": 1}'
USES = {
    "domainname": '"domainname": "d"',
    "process.scheduler": '"process": {"cwd": "/", "scheduler": {"policy": "SCHED_BATCH"}}',
    "process.ioPriority": '"process": {"cwd": "/", "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 1}}',
    "process.execCPUAffinity": '"process": {"cwd": "/", "execCPUAffinity": {"initial": "0"}}',
    "process.user.umask": '"process": {"cwd": "/", "user": {"uid": 0, "gid": 0, "umask": 18}}',
    "mounts[].uidMappings": f'"mounts": [{{"destination": "/m", "uidMappings": [{MAPPING}]}}]',
    "mounts[].options idmap": '"mounts": [{"destination": "/m", "options": ["ridmap"]}]',
    "linux.namespaces time": '"linux": {"namespaces": [{"type": "time"}]}',
    "linux.timeOffsets": '"linux": {"timeOffsets": {"monotonic": {"secs": 1}}}',
    "linux.personality": '"linux": {"personality": {"domain": "LINUX32"}}',
    "linux.resources.cpu.idle": '"linux": {"resources": {"cpu": {"idle": 1}}}',
    "linux.resources.cpu.burst": '"linux": {"resources": {"cpu": {"burst": 1}}}',
    "linux.resources.rdma": '"linux": {"resources": {"rdma": {"mlx5_1": {"hcaHandles": 3}}}}',
    "linux.intelRdt": '"linux": {"intelRdt": {"closID": "x"}}',
    "linux.intelRdt.enableCMT, enableMBM": '"linux": {"intelRdt": {"enableMBM": true}}',
    "linux.intelRdt.schemata": '"linux": {"intelRdt": {"schemata": ["L3:0=f"]}}',
    "linux.intelRdt.enableMonitoring": '"linux": {"intelRdt": {"enableMonitoring": true}}',
    "linux.netDevices": '"linux": {"netDevices": {"eth0": {"name": "c0"}}}',
    "linux.memoryPolicy": '"linux": {"memoryPolicy": {"mode": "MPOL_BIND"}}',
    "linux.seccomp.listenerPath": '"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/s"}}',
    "process.commandLine": '"process": {"cwd": "/", "commandLine": "x"}',
    "process.user.username": '"process": {"cwd": "/", "user": {"uid": 0, "gid": 0, "username": "u"}}',
    "vm": '"vm": {"kernel": {"path": "/k"}}',
    "windows": '"windows": {"layerFolders": []}',
    "solaris": '"solaris": {"milestone": "m"}',
    "zos": '"zos": {"namespaces": []}',
}


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.path)
@pytest.mark.parametrize("program", ["crun", "runc", "unheard-of"])
def test_each_field_is_refused_below_its_version_and_taken_from_it_on(field: object, program: str) -> None:
    """And by a program of which nothing is known, always."""
    path = field.path  # type: ignore[attr-defined]
    config = parse(
        RuntimeConfig, f'{{"ociVersion": "1.2.0", "root": {{"path": "r"}}, {USES[path]}}}'.encode(), where="c"
    )
    with pytest.raises(Unsupported, match=r"config\.json: ") as caught:
        refuse_unhonoured(config, program, (0, 1))
    assert path.startswith(caught.value.details["feature"]) or caught.value.details["feature"] == path
    since = getattr(field, program, None)
    if since is not None:
        others = [other for other in FIELDS if other is not field and other.uses(config)]
        newest = max([since, *(getattr(other, program) for other in others)])
        refuse_unhonoured(config, program, newest)


def test_plain_configurations_pass() -> None:
    config = parse(RuntimeConfig, b'{"ociVersion": "1.0.2", "root": {"path": "r"}, "process": {"cwd": "/"}}', where="c")
    refuse_unhonoured(config, "crun", (1, 0))


def test_versions() -> None:
    assert parse_version("crun version 1.8.1\ncommit: f8a0") == (1, 8, 1)
    assert parse_version("runc version 1.1.5+ds1\n") == (1, 1, 5)
    assert parse_version("runc version 1.3.0-rc.1") == (1, 3, 0)
    with pytest.raises(InvalidArgument):
        parse_version("no such thing")
    assert not takes_spec_version("crun", (1, 8, 1), "1.1.0")
    assert takes_spec_version("crun", (1, 8, 1), "1.0.2-dev")
    assert takes_spec_version("crun", (1, 14, 2), "1.2.0")
    assert takes_spec_version("runc", (1, 1, 5), "1.2.0")


def test_an_older_crun_is_not_told_the_maps_of_a_namespace_that_is_joined() -> None:
    maps = {"uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}], "gidMappings": []}
    made, joined = {"type": "user"}, {"type": "user", "path": "/proc/1/ns/user"}
    for space, kept in ((made, maps), (joined, {})):
        linux = {"namespaces": [{"type": "pid"}, space]}
        told = for_older_crun({"ociVersion": "1.2.0", "linux": linux | maps})
        assert told == {"ociVersion": "1.0.2", "linux": linux | kept}
    assert for_older_crun({"ociVersion": "1.2.0"}) == {"ociVersion": "1.0.2"}
