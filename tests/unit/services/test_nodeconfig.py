"""The node's configuration is read strictly: what is wrong in it is one clear line, and never a default."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drupe.errors import DrupeError, InvalidArgument, NotFound, PermissionDenied
from drupe.sandboxers.runc.options import RuncOptions
from drupe.services import nodeconfig
from drupe.services.nodeconfig import kind_options, load_config, parse_config
from drupe.spec import NodeConfig, PolicyRule

pytestmark = pytest.mark.usefixtures("planned")

GOOD = """
sandbox = "auto"
[kinds.runc]
program = "runc"
[[policy]]
name = "tenants"
namespace = "tenant-*"
labels = { tier = "web" }
minimum = "kernel"
deny = ["hooks", "devices"]
"""


def test_all_that_can_be_said() -> None:
    config = parse_config(GOOD, where="f")
    rule = PolicyRule(
        name="tenants", namespace="tenant-*", labels={"tier": "web"}, minimum="kernel", deny=("hooks", "devices")
    )
    assert config == NodeConfig(sandbox="auto", kinds={"runc": {"program": "runc"}}, policy=(rule,))
    assert kind_options(config, "runc") == RuncOptions(program="runc")
    assert kind_options(NodeConfig(), "runc") == RuncOptions()
    assert parse_config("", where="f") == NodeConfig()


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("sandbox =", "f is not valid TOML: Invalid value", ""),
        ('sandbx = "runc"', "f: unknown key 'sandbx'", "known keys: sandbox, kinds, policy"),
        ("sandbox = 3", "f: Expected `str`, got `int` - at `\\$.sandbox`", ""),
        ('sandbox = "jail"', "f: unknown sandbox kind 'jail'", "one of: auto, "),
        ('sandbox = "someday"', "f: sandbox kind 'someday' is not built", ""),
        ("[kinds.jail]", "f: unknown sandbox kind 'jail'", "one of"),
        ("[kinds.runc]\nprog = 'x'", "f: kinds.runc: unknown key 'prog'", "known keys: program"),
        ("[kinds.runc]\nprogram = 1", "f: kinds.runc: Expected `str`, got `int`", ""),
        ("[policy]\nname = 'a'", "f: Expected `array`, got `object` - at `\\$.policy`", ""),
        ("[[policy]]\nnamed = 'a'", "f: policy 1: unknown key 'named'", "known keys: name, namespace, labels, minimum"),
        ("[[policy]]\nminimum = 'kernel'", "f: policy 1: .*missing required field `name`", ""),
        ("[[policy]]\nname = 'a'\nminimum = 'strong'", "f: policy 1: no level 'strong'", "one of: none, namespaces"),
        ("[[policy]]\nname = 'a'", "f: policy 1: rule 'a' demands nothing", "minimum or deny"),
        ("[[policy]]\nname = 'a'\ndeny = ['device']", "f: policy 1: unknown feature 'device'", "did you mean devices"),
        ("[[policy]]\nname = 'a'\ndeny = ['xyz']", "unknown feature 'xyz'", "drupe system capabilities"),
        ("[[policy]]\nname='a'\nminimum='kernel'\n" * 2, "f: two policy rules are named 'a'", ""),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str, hint: str) -> None:
    with pytest.raises(InvalidArgument, match=says) as caught:
        parse_config(text, where="f")
    assert hint in caught.value.hint and "\n" not in str(caught.value)


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by argument, by environment, or at its usual place, which alone may be empty."""
    usual, named, env = (tmp_path / name for name in ("usual", "named", "env"))
    monkeypatch.setattr(nodeconfig, "DEFAULT_PATH", usual)
    monkeypatch.delenv("DRUPE_CONFIG", raising=False)
    assert load_config() == NodeConfig()
    for path in (usual, named, env):
        path.write_text(f'[[policy]]\nname = "{path.name}"\nminimum = "kernel"\n')
    assert load_config().policy[0].name == "usual"
    monkeypatch.setenv("DRUPE_CONFIG", str(env))
    assert load_config().policy[0].name == "env"
    assert load_config(named).policy[0].name == "named"
    env.unlink()
    with pytest.raises(NotFound, match=f"configuration file {env} does not exist"):
        load_config()


def test_a_file_that_others_may_change_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "drupe.toml"
    path.write_text(GOOD)
    path.chmod(0o644)
    load_config(path)
    for mode in (0o664, 0o646):
        path.chmod(mode)
        with pytest.raises(PermissionDenied, match="can be changed by others") as caught:
            load_config(path)
        assert caught.value.hint == f"chown root {path} && chmod go-w {path}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "drupe.toml"
    path.write_text(GOOD)
    os.chown(path, 1000, 1000)
    with pytest.raises(PermissionDenied, match="can be changed by others"):
        load_config(path)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgument, match="is not UTF-8"):
        load_config(tmp_path / "binary")
    with pytest.raises(DrupeError):
        load_config(tmp_path)
