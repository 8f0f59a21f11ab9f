"""The Wasm kind's bookkeeping: which module is meant, settings, the cache of compiled modules. No engine is needed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from drupe.errors import InvalidArgument, NotFound, PermissionDenied, Unsupported
from drupe.sandboxers.wasm import known, settings
from drupe.sandboxers.wasm.cache import CodeCache, key_of
from drupe.sandboxers.wasm.job import MODULE, Limits
from drupe.sandboxers.wasm.modules import MAGIC, Own, open_module
from drupe.sandboxers.wasm.place import place_of, place_of_exec

WASM = MAGIC + b"\1\0\0\0"


def opened(root: Path, program: str, *, path: str = "/bin", cwd: str = "/", own: Own | None = None) -> str:
    """The file that a command means, as a path."""
    handle = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        module = open_module(handle, program, path=path, cwd=cwd, own=own)
    finally:
        os.close(handle)
    try:
        return str(Path(f"/proc/self/fd/{module}").readlink())
    finally:
        os.close(module)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("bin/tool.wasm", "bin/plain", "here/local.wasm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(WASM)
    (tmp_path / "bin/text").write_text("no module")
    (tmp_path / "bin/out").symlink_to("/etc/passwd")
    return tmp_path


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("tool", "bin/tool.wasm"), ("tool.wasm", "bin/tool.wasm"), ("/bin/plain", "bin/plain"),
        ("./local.wasm", "here/local.wasm"), ("../bin/tool", "bin/tool.wasm"),
    ],
)  # fmt: skip
def test_a_module_is_found_as_a_shell_finds_a_program(root: Path, program: str, found: str) -> None:
    assert opened(root, program, cwd="/here") == str(root / found)


def test_what_is_missing_or_no_module(root: Path) -> None:
    with pytest.raises(NotFound, match="'nothing' is not in the container's PATH") as missing:
        opened(root, "nothing")
    assert missing.value.details["exit_code"] == "127"
    with pytest.raises(PermissionDenied) as refused:
        opened(root, "text")
    assert (refused.value.details["exit_code"], refused.value.cause) == ("126", "it is not WebAssembly")
    with pytest.raises(NotFound):  # the link leads to /etc/passwd of the container, not of the host
        opened(root, "/bin/out")


@pytest.mark.parametrize("name", ["mine", "mine.wasm", "/any/where/mine.wasm"])
def test_a_containers_own_module_answers_to_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "blob"
    path.write_bytes(WASM)
    own = Own(str(path), ("/somewhere/mine.wasm",))
    assert opened(tmp_path, name, own=own) == str(path)
    with pytest.raises(NotFound):
        opened(tmp_path, "another", own=own)


def test_settings() -> None:
    annotations = {settings.FUEL: "10", settings.MEMORY: "1m", settings.TABLE_ELEMENTS: "5", settings.INSTANCES: "2"}
    settings.check(annotations)
    wanted = Limits(memory_bytes=1 << 20, table_elements=5, instances=2, fuel=10)
    assert settings.limits_of(annotations) == wanted
    assert settings.limits_of({}) == Limits()
    assert settings.engine_of({}, "wasmtime") == "wasmtime"


@pytest.mark.parametrize("annotation", [(settings.FUEL, "-1"), (settings.MEMORY, "much"), ("drupe.wasm.x", "1")])
def test_settings_that_make_no_sense(annotation: tuple[str, str]) -> None:
    with pytest.raises(InvalidArgument, match=annotation[0].replace(".", r"\.")):
        settings.check(dict([annotation]))


def test_a_user_cannot_name_the_runtimes_own_annotation() -> None:
    with pytest.raises(InvalidArgument, match="unknown annotation"):
        settings.check({settings.MODULE: "/etc/passwd"})


def test_engines() -> None:
    with pytest.raises(InvalidArgument, match="unknown Wasm engine 'v8'"):
        known.version("v8")
    for name in known.OTHERS:
        with pytest.raises(Unsupported) as caught:
            known.version(name)
        assert caught.value.cause and caught.value.hint


def test_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known.ENGINES, "wasmtime", known.Known("no-such-package", "no_such", "pip install it"))
    with pytest.raises(Unsupported, match="the Wasm engine wasmtime is not installed") as caught:
        known.version("wasmtime")
    assert caught.value.hint == "pip install it"


def test_where_a_process_lives() -> None:
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        {"destination": "/data", "type": "bind", "source": "/host", "options": ["rbind", "rro"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=5"]},
    ]
    namespaces = [{"type": "network", "path": "/n"}, {"type": "mount"}, {"type": "user", "path": "/u"}]
    oci = {"root": {"path": ""}, "mounts": mounts, "linux": {"namespaces": namespaces}}
    place = place_of(oci)
    assert place.namespaces == {"net": "/n", "user": "/u"}
    assert [(b.target, b.source, b.read_only, b.data) for b in place.binds] == [
        ("/data", "/host", True, ""),
        ("/tmp", "", False, "size=5"),
    ]
    assert place_of_exec(oci, 7).namespaces["mnt"] == "/proc/7/ns/mnt"
    assert "mnt" not in place_of_exec({"root": {"path": ""}}, 7).namespaces  # nothing of its own to join


# -- the cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> CodeCache:
    return CodeCache(tmp_path / "wasm", max_bytes=1000)


def add(cache: CodeCache, key: str, data: bytes = b"code") -> Path:
    code = os.memfd_create("code")
    try:
        os.write(code, data)
        return cache.add(key, MODULE, code).directory
    finally:
        os.close(code)


def test_what_was_added_is_found_by_another(cache: CodeCache) -> None:
    directory = add(cache, "k")
    for each in (cache, CodeCache(cache.root)):
        entry = each.find("k")
        assert entry is not None and (entry.directory, entry.form) == (directory, MODULE)
    assert cache.find("other") is None
    assert cache.root.stat().st_mode & 0o777 == 0o700


def _flip(code: Path) -> None:
    code.write_bytes(b"evil")


def _open_up(code: Path) -> None:
    code.chmod(0o666)


def _link(code: Path) -> None:
    code.rename(code.with_name("moved"))
    code.symlink_to(code.with_name("moved"))


def _lose_words(code: Path) -> None:
    (code.parent / "about.json").unlink()


def _open_root(code: Path) -> None:
    code.parent.parent.chmod(0o777)


@pytest.mark.parametrize("harm", [_flip, _open_up, _link, _lose_words, _open_root])
def test_an_entry_that_somebody_touched_is_thrown_away(cache: CodeCache, harm: Callable[[Path], None]) -> None:
    directory = add(cache, "k")
    harm(directory / "code")
    assert CodeCache(cache.root).find("k") is None
    assert not directory.exists()


def test_a_change_is_seen_after_the_first_check(cache: CodeCache) -> None:
    directory = add(cache, "k")
    assert cache.find("k") is not None
    _flip(directory / "code")
    assert cache.find("k") is None


def test_the_least_used_goes_first(cache: CodeCache) -> None:
    for number, key in enumerate(("old", "newer")):
        directory = add(cache, key, b"x" * 400)
        os.utime(directory, (number, number))
    add(cache, "newest", b"x" * 400)
    assert [cache.find(key) is not None for key in ("old", "newer", "newest")] == [False, True, True]
    assert (cache.usage().total, cache.usage().size_bytes) == (2, 800)
    assert cache.prune().reclaimed_bytes == 800 and cache.usage().total == 0


def test_keys_tell_apart_all_that_code_depends_on() -> None:
    keys = {
        key_of("a", "wasmtime", "1", fuel=False), key_of("b", "wasmtime", "1", fuel=False),
        key_of("a", "other", "1", fuel=False), key_of("a", "wasmtime", "2", fuel=False),
        key_of("a", "wasmtime", "1", fuel=True),
    }  # fmt: skip
    assert len(keys) == 5
