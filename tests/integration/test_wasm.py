"""WebAssembly through the whole of drupe: images in every form, what WASI gives a guest, limits, ends, bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import drupe
from drupe.errors import InvalidArgument, NotFound, Unsupported
from drupe.images.store import ImageStore
from drupe.spec import ContainerSpec, NetworkSpec, PodSpec
from drupe.spec.control import ImageBuild, ImageExport, ImageImport, PodCreate, PodRun
from framework import guests
from framework.daemon import Daemon
from framework.leaks import wait_until
from framework.residue import children, comm, residue

pytestmark = pytest.mark.root
KIND = ("run", "--rm", "--network", "none")


@pytest.fixture(scope="module")
def daemon(open_daemon: Daemon) -> Daemon:
    """Ids of user namespaces can walk to its directories."""
    return open_daemon


@pytest.fixture(scope="module", autouse=True)
def suite(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image `suite`: the test programs in one module, and nothing else."""
    pytest.importorskip("wasmtime")
    module = tmp_path_factory.mktemp("suite") / "suite.wasm"
    shutil.copyfile(guests.suite(), module)
    daemon.command("image", "import", "--tag", "suite", str(module), check=True)
    return "suite"


@pytest.fixture(autouse=True)
def nothing_left(daemon: Daemon) -> Iterator[None]:
    yield
    daemon.delete_pods()
    assert residue(daemon) == {}


def out(daemon: Daemon, *argv: str, code: int = 0, input: str | None = None) -> str:
    """The output of a run; flags before the image."""
    done = daemon.command(*KIND, *argv, input=input)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


# -- images -----------------------------------------------------------------------------------------------------------


def test_a_module_is_an_image(daemon: Daemon) -> None:
    listed = json.loads(daemon.command("images", "--json", "suite", check=True).stdout)[0]
    assert (listed["os"], listed["architecture"], bool(listed["module"])) == ("wasip1", "wasm", True)
    assert out(daemon, "suite", "echo", "hello") == "hello\n"


def test_a_bare_file(daemon: Daemon, tmp_path: Path) -> None:
    shutil.copyfile(guests.suite(), tmp_path / "suite-of-mine.wasm")
    assert out(daemon, "--sandbox", "wasm", f"{tmp_path}/suite-of-mine.wasm", "echo", "bare") == "bare\n"


def test_the_plain_form_with_files_beside_the_module(daemon: Daemon, tmp_path: Path) -> None:
    root = guests.make_rootfs(tmp_path / "root")
    (root / "greeting").write_text("from the image\n")
    store = ImageStore(daemon.root / "images")
    config = {"Entrypoint": ["/bin/suite.wasm"], "Env": ["COLOUR=deep blue"]}
    plain = store.import_image(ImageImport(format="rootfs", path=str(root), tag="plain", config=config)).images[0]
    made = _for_wasi(store, plain.digest)
    assert out(daemon, made, "cat", "/greeting") == "from the image\n"
    assert out(daemon, made, "printenv", "COLOUR") == "deep blue\n"
    assert out(daemon, made, "put", "/new", "x") == ""
    assert "rror" in out(daemon, "--read-only", made, "put", "/new", "x", code=1)


def _for_wasi(store: ImageStore, digest: str) -> str:
    """The same image, for the platform wasip1/wasm: what a builder for WASI writes."""
    from drupe.images.docker_archive import put_manifest
    from drupe.images.media import OCI_CONFIG, Descriptor, decode_manifest

    manifest = decode_manifest(store.blobs.read(digest), where="test")
    document = json.loads(store.blobs.read(manifest.config.digest)) | {"os": "wasip1", "architecture": "wasm"}
    raw = json.dumps(document).encode()
    config = Descriptor(media_type=OCI_CONFIG, digest=store.blobs.put(raw), size=len(raw))
    return store.install(put_manifest(store.blobs, config, manifest.layers), names=["docker.io/library/made:1"]).digest


def test_the_plain_form_with_the_module_alone_needs_no_root(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    shutil.copyfile(guests.suite(), tmp_path / "root/suite.wasm")
    store = ImageStore(daemon.root / "images")
    config = {"Entrypoint": ["/suite.wasm"]}
    plain = store.import_image(ImageImport(format="rootfs", path=str(tmp_path / "root"), config=config)).images[0]
    made = _for_wasi(store, plain.digest)
    assert out(daemon, made, "echo", "alone") == "alone\n"
    assert "apabilities" in out(daemon, made, "ls", "/", code=1)


@pytest.mark.parametrize(
    "layer",
    [
        "application/wasm",
        "application/vnd.wasm.content.layer.v1+wasm",
        "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
    ],
)
def test_artifacts_as_others_make_them(daemon: Daemon, tmp_path: Path, layer: str) -> None:
    """An OCI layout with a module as its layer, in the forms of the CNCF, of Docker and of runwasi."""
    _layout(tmp_path, layer)
    daemon.command("image", "import", "--tag", "artifact", str(tmp_path), check=True)
    assert out(daemon, "artifact", "echo", "hello") == "hello\n"


def _layout(directory: Path, layer: str) -> None:
    from drupe.images import media

    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, object]:
        digest = media.digest_of(data)
        (blobs / media.hex_of(digest)).write_bytes(data)
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    module = put(guests.suite().read_bytes(), layer)
    document = {"os": "wasip1", "architecture": "wasm", "config": {"Entrypoint": ["suite"]}}
    config = put(json.dumps(document).encode(), media.OCI_CONFIG if "vnd" in layer else media.WASM_CONFIG)
    manifest = {"schemaVersion": 2, "mediaType": media.OCI_MANIFEST, "config": config, "layers": [module]}
    top = put(json.dumps(manifest).encode(), media.OCI_MANIFEST)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))


def test_export_and_import_again(daemon: Daemon, tmp_path: Path) -> None:
    store, other = ImageStore(daemon.root / "images"), ImageStore(tmp_path / "other")
    with (tmp_path / "image.tar").open("wb") as file:
        store.export(ImageExport(refs=("suite",)), file)
    again = other.import_image(ImageImport(path=str(tmp_path / "image.tar"))).images[0]
    assert again.digest == store.resolve("suite").digest and again.module
    with pytest.raises(Unsupported, match="docker archive"), (tmp_path / "x").open("wb") as file:
        store.export(ImageExport(refs=("suite",), format="docker-archive"), file)
    with pytest.raises(Unsupported, match="nothing can be put on it"):
        store.build(ImageBuild(tag="x", base="suite", path=str(tmp_path)))


def test_the_other_kind_of_image_is_refused_by_name(daemon: Daemon) -> None:
    for kind, image, feature in (("wasm", "busybox", "linux-programs"), ("runc", "suite", "wasm-modules")):
        spec = PodSpec(
            sandbox=kind, network=NetworkSpec(mode="none"), containers=(ContainerSpec(image=image, argv=("true",)),)
        )
        with daemon.client() as client, pytest.raises(Unsupported) as caught:
            client.call("pod.create", PodCreate(spec=spec))
        assert caught.value.details["feature"] == feature


# -- what a guest gets ------------------------------------------------------------------------------------------------


def test_arguments_environment_input_clock_and_random(daemon: Daemon) -> None:
    assert out(daemon, "-e", "COLOUR=red", "suite", "printenv", "COLOUR") == "red\n"
    assert out(daemon, "-w", "/some/where", "suite", "pwd") == "/some/where\n"
    assert out(daemon, "-i", "suite", "cat", input="streamed\n") == "streamed\n"
    assert abs(int(out(daemon, "suite", "now")) - time.time()) < 10
    assert out(daemon, "suite", "random") != out(daemon, "suite", "random")


@pytest.mark.parametrize("code", [0, 1, 42, 126, 200, 255])
def test_exit_codes_pass_through(daemon: Daemon, code: int) -> None:
    assert daemon.command(*KIND, "suite", "exit", str(code)).returncode == code


def test_a_trap_is_said_in_one_line(daemon: Daemon) -> None:
    said = out(daemon, "suite", "trap", code=134)
    assert said == "drupe: the module was ended: wasm trap: wasm `unreachable` instruction executed\n"
    pod = daemon.run_pod("trap", image="suite")
    with daemon.client() as client:
        from drupe.spec.control import Wait

        end = client.call("container.wait", Wait(ref=pod.containers[0].id))
    assert (end.code, end.reason, end.message) == (134, "Trap", "wasm trap: wasm `unreachable` instruction executed")


def test_mounts(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from the host\n")
    bind = f"{tmp_path}:/data"
    assert out(daemon, "-v", bind, "suite", "cat", "/data/in") == "from the host\n"
    assert out(daemon, "-v", bind, "suite", "put", "/data/out", "from inside") == ""
    assert (tmp_path / "out").read_text() == "from inside"
    assert "rror" in out(daemon, "-v", f"{bind}:ro", "suite", "put", "/data/no", "x", code=1)
    assert not (tmp_path / "no").exists()
    assert out(daemon, "--tmpfs", "/tmp", "suite", "put", "/tmp/x", "y") == ""
    out(daemon, "-v", "kept:/v", "suite", "put", "/v/file", "kept")
    assert out(daemon, "-v", "kept:/v", "suite", "cat", "/v/file") == "kept"
    daemon.command("volume", "rm", "kept", check=True)


def test_no_link_leads_out_of_a_mount(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("not for guests\n")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "absolute").symlink_to(tmp_path / "secret")
    (inside / "relative").symlink_to("../../../../../../../../../../../etc/passwd")
    (inside / "up").symlink_to("..")
    for path in ("absolute", "relative", "up/secret", "../secret"):
        said = out(daemon, "-v", f"{inside}:/data", "suite", "cat", f"/data/{path}", code=1)
        assert "not for guests" not in said and "root:" not in said


def test_secrets(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret")
    assert out(daemon, "--secret", f"id=token,src={tmp_path}/token", "suite", "cat", "/run/secrets/token") == "s3cret"


def test_a_guest_has_no_rights_and_no_way_to_the_host(daemon: Daemon, tmp_path: Path) -> None:
    """Of its process, as the host sees it: no capability, a filter, an empty root, namespaces of the pod's own."""
    pod = daemon.run_pod("sleep", "60", image="suite", user="1234:2345")
    process = Path(f"/proc/{pod.containers[0].pid}")
    lines = (process / "status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert (status["Seccomp"].strip(), status["NoNewPrivs"].strip()) == ("2", "1")
    assert set(status["Uid"].split()) == {"1234"} and set(status["Gid"].split()) == {"2345"}
    assert [path.name for path in (process / "root").iterdir()] == ["new"]
    assert not list((process / "root/new").iterdir())
    for kind in ("net", "mnt", "ipc", "uts"):
        assert (process / "ns" / kind).readlink() != Path(f"/proc/{daemon.keeper_pid}/ns/{kind}").readlink()

    def odd() -> list[str]:
        """Descriptors beside its streams, its own code, the file for last words."""
        try:
            targets = [str(fd.readlink()) for fd in (process / "fd").iterdir()]
        except FileNotFoundError:  # one was closed just now
            return ["another"]
        harmless = ("pipe:", "/dev/null", "anon_inode:", "socket:", "/code")
        return [t for t in targets if not t.startswith(harmless) and not t.endswith("/trap")]

    wait_until(lambda: odd() == [], what="it holds nothing else")


# -- limits and ends --------------------------------------------------------------------------------------------------


def test_memory(daemon: Daemon) -> None:
    """Linear memory ends before the cgroup's limit does, so that a guest is told and not killed."""
    assert out(daemon, "--memory", "64m", "suite", "grow") == "grew by 880 pages\n"
    assert "Out of memory" in out(daemon, "--memory", "64m", "suite", "eat", code=1)
    assert out(daemon, "--annotation", "drupe.wasm.memory=1m", "suite", "grow") == "grew by 0 pages\n"


def test_fuel(daemon: Daemon) -> None:
    said = out(daemon, "--annotation", "drupe.wasm.fuel=1000000", "suite", "spin", code=134)
    assert said == "drupe: the module was ended: wasm trap: all fuel consumed by WebAssembly\n"
    assert out(daemon, "--annotation", "drupe.wasm.fuel=100000000", "suite", "echo", "enough") == "enough\n"


@pytest.mark.parametrize("setting", ["drupe.wasm.fuel=much", "drupe.wasm.colour=red", "drupe.wasm.engine=wasmoon"])
def test_settings_that_make_no_sense(daemon: Daemon, setting: str) -> None:
    said = out(daemon, "--annotation", setting, "suite", "true", code=125)
    assert setting.partition("=")[0] in said or "wasmoon" in said
    assert len(said.strip().splitlines()) <= 2


@pytest.mark.parametrize("engine", ["wasmedge", "wasmer"])
def test_engines_that_cannot_be_had(daemon: Daemon, engine: str) -> None:
    said = out(daemon, "--annotation", f"drupe.wasm.engine={engine}", "suite", "true", code=125)
    assert f"the Wasm engine {engine} cannot be used" in said and "hint: use wasmtime" in said


def test_a_busy_loop_is_ended(daemon: Daemon) -> None:
    began = time.monotonic()
    done = daemon.command(*KIND, "--timeout", "1s", "suite", "spin")
    assert done.returncode == 137 and time.monotonic() - began < 20, done
    pod = daemon.run_pod("spin", image="suite")
    daemon.command("stop", "-t", "5", pod.name, check=True)
    assert daemon.command("wait", pod.name).stdout.strip() in ("143", "")


def test_stats_pause_update_logs_and_top(daemon: Daemon) -> None:
    pod = daemon.run_pod("spin", image="suite")
    ref = pod.containers[0].id
    daemon.command("pause", ref, check=True)
    daemon.command("unpause", ref, check=True)
    daemon.command("update", "--memory", "100m", ref, check=True)
    stats = json.loads(daemon.command("stats", "--no-stream", "--json", ref, check=True).stdout)
    stats = stats[0] if isinstance(stats, list) else stats
    assert stats["stats"]["memory_limit_bytes"] == 100 << 20 and stats["stats"]["cpu_usage_ns"] > 0
    assert "suite" in daemon.command("top", ref, check=True).stdout
    talker = daemon.run_pod("seq", "3", image="suite")
    wait_until(lambda: daemon.command("logs", talker.name).stdout == "1\n2\n3\n", what="the log is there")


def test_several_containers_in_a_pod(daemon: Daemon) -> None:
    containers = tuple(ContainerSpec(name=f"c{n}", image="suite", argv=("exit", str(n))) for n in (3, 4))
    spec = PodSpec(sandbox="wasm", network=NetworkSpec(mode="none"), containers=containers)
    from drupe.spec.control import Wait

    with daemon.client() as client:
        pod = client.call("pod.run", PodRun(spec=spec))
        ends = [client.call("container.wait", Wait(ref=c.id)).code for c in pod.containers]
    assert ends == [3, 4]


def test_on_the_bridge(daemon: Daemon) -> None:
    """The pod is on the network, and the files that say what names mean are there."""
    run = ("run", "--rm", "--hostname", "chosen", "--add-host", "friend:10.1.2.3", "suite", "cat")
    hosts = daemon.command(*run, "/etc/hosts", check=True).stdout
    assert "10.1.2.3\tfriend" in hosts and "chosen" in hosts
    assert "nameserver" in daemon.command(*run, "/etc/resolv.conf", check=True).stdout


def test_an_own_user_namespace(daemon: Daemon) -> None:
    assert out(daemon, "--userns", "auto", "suite", "echo", "mapped") == "mapped\n"


# -- from Python ------------------------------------------------------------------------------------------------------


def runtime(daemon: Daemon) -> drupe.Runtime:
    return drupe.Runtime(daemon.run / "drupe.sock")


def test_a_sandbox_to_call_into(daemon: Daemon) -> None:
    with runtime(daemon) as here, here.sandbox("suite", isolation="wasm", network="none") as sandbox:
        for _ in range(3):  # the first call, and those whose process was made ahead
            done = sandbox.run(["suite", "echo", "called"])
            assert (done.exit_code, done.stdout, done.stderr) == (0, b"called\n", b"")
            time.sleep(0.2)
        assert sandbox.run(["suite", "exit", "7"]).exit_code == 7
        assert sandbox.run(["suite", "cat"], input=b"fed").stdout == b"fed"
        assert sandbox.run(["suite", "printenv", "A"], env={"A": "b"}, text=True).stdout == "b\n"
        with pytest.raises(drupe.CommandTimeout):
            sandbox.run(["suite", "spin"], timeout=0.5)
        with pytest.raises(NotFound, match="no-such-module"):
            sandbox.run(["no-such-module"])
        assert len(sandbox.processes()) >= 1


def test_a_bare_file_from_python(daemon: Daemon) -> None:
    with runtime(daemon) as here, here.sandbox(str(guests.suite()), isolation="wasm", network="none") as sandbox:
        name = guests.suite().name
        assert sandbox.run([name, "echo", "bare"], text=True).stdout == "bare\n"


def test_what_one_call_leaves_the_next_does_not_find(daemon: Daemon) -> None:
    """Each has random numbers of its own, though all processes come from one."""
    with runtime(daemon) as here, here.sandbox("suite", isolation="wasm", network="none") as sandbox:
        said = {sandbox.run(["suite", "random"]).stdout for _ in range(5)}
    said |= {out(daemon, "suite", "random").encode() for _ in range(5)}
    assert len(said) == 10


# -- bad input --------------------------------------------------------------------------------------------------------

BAD = {
    "no WebAssembly at all": (b"#!/bin/sh\necho hello\n", "not a WebAssembly module"),
    "a module cut short": (b"\0asm\1\0\0\0\xff\xff\xff", "cannot be run: "),
    "no command": ('(module (func (export "run")))', "it is not a command: it exports no function `_start`"),
    "an import that is not offered": (
        '(module (import "env" "host_call" (func)) (memory (export "memory") 1) (func (export "_start")))',
        "unknown import: `env::host_call` has not been defined",
    ),
    "an import of another type": (
        '(module (import "wasi_snapshot_preview1" "fd_write" (func)) (func (export "_start")))',
        "types incompatible: expected type `(func)`",
    ),
    "more memory than allowed": (
        '(module (memory (export "memory") 40000) (func (export "_start")))',
        "memory minimum size",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_modules(daemon: Daemon, tmp_path: Path, what: str) -> None:
    """One clear line, no traceback, nothing left; the daemon goes on."""
    source, words = BAD[what]
    path = tmp_path / "bad.wasm"
    path.write_bytes(source if isinstance(source, bytes) else guests.wat(source))
    if isinstance(source, bytes) and not source.startswith(b"\0asm"):
        done = daemon.command("image", "import", "--format", "wasm", str(path))
    else:
        done = daemon.command(*KIND, "--memory", "64m", str(path))
    assert done.returncode not in (0, 70) and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 2, done.stderr
    assert out(daemon, "suite", "echo", "alive") == "alive\n"


def test_a_trap_in_the_start_function(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "start.wasm"
    path.write_bytes(guests.wat('(module (func $s unreachable) (start $s) (func (export "_start")))'))
    assert "the module was ended: wasm trap: wasm `unreachable`" in out(daemon, str(path), code=134)


def test_a_module_of_a_gibibyte(daemon: Daemon, tmp_path: Path) -> None:
    """A custom section of a gibibyte, sparse on disk, in a root tree of the host."""
    root = tmp_path / "root"
    root.mkdir()
    with (root / "big.wasm").open("wb") as file:
        file.write(b"\0asm\1\0\0\0" + b"\0" + bytes((0x80, 0x80, 0x80, 0x80, 0x04)))
        file.truncate(1 << 30)
    container = ContainerSpec(rootfs=str(root), argv=("/big.wasm",))
    spec = PodSpec(sandbox="wasm", network=NetworkSpec(mode="none"), containers=(container,))
    with daemon.client() as client, pytest.raises(InvalidArgument, match="has 1024 MiB, over the limit of 256 MiB"):
        client.call("pod.run", PodRun(spec=spec))


@pytest.mark.parametrize("harm", ["flipped", "truncated", "writable", "a link", "another's"])
def test_a_poisoned_cache_entry_is_made_again(daemon: Daemon, harm: str, tmp_path: Path) -> None:
    shutil.rmtree(daemon.root / "wasm", ignore_errors=True)
    assert out(daemon, "suite", "echo", "first") == "first\n"
    for code in (daemon.root / "wasm").glob("*/code"):
        _harm(code, harm, tmp_path)
    assert out(daemon, "suite", "echo", "again") == "again\n"
    for code in (daemon.root / "wasm").glob("*/code"):
        found = code.lstat()
        assert stat.S_ISREG(found.st_mode) and (found.st_uid, found.st_mode & 0o022) == (0, 0)
    assert (daemon.root / "wasm").stat().st_mode & 0o777 == 0o700


def _harm(code: Path, harm: str, tmp_path: Path) -> None:
    data = bytearray(code.read_bytes())
    if harm == "flipped":
        data[len(data) // 2] ^= 0xFF
        code.write_bytes(bytes(data))
    elif harm == "truncated":
        os.truncate(code, len(data) // 2)
    elif harm == "writable":
        code.chmod(0o666)
    elif harm == "another's":
        os.chown(code, 1234, 1234)
    else:
        code.rename(tmp_path / "elsewhere")
        code.symlink_to(tmp_path / "elsewhere")


def test_compiling_once_for_many(daemon: Daemon) -> None:
    shutil.rmtree(daemon.root / "wasm", ignore_errors=True)
    done: list[str] = []
    threads = [threading.Thread(target=lambda: done.append(out(daemon, "suite", "echo", "x"))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == ["x\n"] * 5
    assert len([p for p in (daemon.root / "wasm").iterdir() if not p.name.startswith("new.")]) == 1


def test_the_cache_is_counted_and_pruned(daemon: Daemon) -> None:
    out(daemon, "suite", "true")
    used = {row["type"]: row for row in json.loads(daemon.command("system", "df", "--json", check=True).stdout)}
    assert used["compiled modules"]["total"] >= 1 and used["compiled modules"]["size_bytes"] > 100_000
    with daemon.client() as client:
        from drupe.spec.control import Prune

        client.call("system.prune", Prune())
    assert not list((daemon.root / "wasm").glob("*/code"))
    assert out(daemon, "suite", "echo", "compiled again") == "compiled again\n"


# -- harm -------------------------------------------------------------------------------------------------------------


def zygotes(daemon: Daemon) -> list[int]:
    found = [int(child.split()[0]) for child in children(daemon.keeper_pid)]
    return [pid for pid in found if comm(pid) == "drupe-zygote"]


def test_zygote_and_waiting_children_killed(daemon: Daemon) -> None:
    """What runs goes on; what comes next starts another."""
    pod = daemon.run_pod("sleep", "60", image="suite")
    for pid in zygotes(daemon):
        os.kill(pid, signal.SIGKILL)
    assert out(daemon, "suite", "echo", "hello") == "hello\n"
    assert json.loads(daemon.command("inspect", pod.name).stdout)[0]["status"]["state"] == "running"


@pytest.fixture
def harmed(fresh_daemon: Daemon, suite: str, tmp_path: Path) -> Daemon:
    """A daemon for one test alone, with the suite's image."""
    shutil.copyfile(guests.suite(), tmp_path / "suite.wasm")
    fresh_daemon.command("image", "import", "--tag", "suite", str(tmp_path / "suite.wasm"), check=True)
    return fresh_daemon


def test_the_daemon_killed(harmed: Daemon) -> None:
    """The guest goes on, its output and exit code are kept, and it can be called into again."""
    living = harmed.run_pod("sleep", "60", image="suite")
    talker = harmed.run_pod("sleep", "1", image="suite")
    harmed.kill()
    time.sleep(1.5)
    harmed.start()
    states = {row["name"]: row["state"] for row in json.loads(harmed.command("ps", "-a", "--json").stdout)}
    assert states[living.name] == "running" and states[talker.name] == "stopped"
    assert harmed.command("wait", talker.name, check=True).stdout.strip() == "0"
    assert harmed.command("exec", living.name, "suite", "echo", "still").stdout == "still\n"


def test_the_keeper_killed(harmed: Daemon) -> None:
    pod = harmed.run_pod("sleep", "60", image="suite")
    old = harmed.keeper_pid
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: harmed.keeper_pid not in (0, old), what="another keeper")
    wait_until(lambda: harmed.command("ps").returncode == 0, what="the daemon answers")
    assert harmed.command("exec", pod.name, "suite", "echo", "still").stdout == "still\n"
    assert out(harmed, "suite", "echo", "new") == "new\n"
    harmed.command("kill", pod.name, check=True)
    wait_until(lambda: harmed.command("wait", pod.name).stdout.strip() == "137", what="its end is known")
