"""The node's configuration: one TOML file, read whole and strictly. A file that is wrong is an error, never a default.

docs/choosing.md says what stands in it. Whoever can write it decides how strongly pods are isolated: so it must belong
to root or to the daemon's own user, and nobody else may change it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, TypeVar

from drupe.errors import DrupeError, InvalidArgument, NotFound, PermissionDenied, from_os_error
from drupe.runtime.choosing import AUTO
from drupe.sandboxers.features import FEATURES
from drupe.sandboxers.kinds import LEVELS, kind_of
from drupe.spec.base import Spec, decode
from drupe.spec.node import ContainerdConfig, NodeConfig, PolicyRule

DEFAULT_PATH = Path("/etc/drupe/drupe.toml")
S = TypeVar("S", bound=Spec)


def load_config(path: Path | None = None) -> NodeConfig:
    """The configuration of `path`, else of $DRUPE_CONFIG, else of /etc/drupe/drupe.toml, which alone may be missing.

    Raises NotFound, PermissionDenied (others may change it), InvalidArgument naming file, place and what is wrong.
    """
    named = path or (Path(os.environ["DRUPE_CONFIG"]) if os.environ.get("DRUPE_CONFIG") else None)
    try:
        text = _read(named or DEFAULT_PATH)
    except FileNotFoundError:
        if named is not None:
            raise NotFound(f"configuration file {named} does not exist") from None
        return NodeConfig()
    return parse_config(text, where=str(named or DEFAULT_PATH))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise PermissionDenied(
                    f"{path} can be changed by others than root", hint=f"chown root {path} && chmod go-w {path}"
                )
            return file.read().decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f"{path} is not UTF-8") from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise from_os_error(error) from None


class _File(Spec):
    """The file as it is written; what `policy`, `kinds` and `containerd` hold is read table by table."""

    sandbox: str = ""
    kinds: dict[str, dict[str, Any]] = {}
    policy: tuple[dict[str, Any], ...] = ()
    containerd: dict[str, Any] = {}


def parse_config(text: str, *, where: str) -> NodeConfig:
    """The configuration that `text` (TOML) says. Raises InvalidArgument naming `where`."""
    import tomllib

    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"{where} is not valid TOML: {error}") from None
    file = _strict(_File, data, where)
    rules = tuple(_rule(rule, f"{where}: policy {number}") for number, rule in enumerate(file.policy, 1))
    containerd = _strict(ContainerdConfig, file.containerd, f"{where}: containerd")
    config = NodeConfig(sandbox=file.sandbox, kinds=file.kinds, policy=rules, containerd=containerd)
    _check_names(config, where)
    for name in config.kinds:
        kind_options(config, name, where=where)
    return config


def kind_options(config: NodeConfig, name: str, *, where: str = "configuration") -> Spec:
    """The settings of a kind. Raises InvalidArgument."""
    return _strict(kind_of(name).options(), config.kinds.get(name, {}), f"{where}: kinds.{name}")


def _rule(data: dict[str, Any], where: str) -> PolicyRule:
    if isinstance(data.get("minimum"), str) and data["minimum"] not in LEVELS:
        raise InvalidArgument(f"{where}: no level {data['minimum']!r}", hint=f"one of: {', '.join(LEVELS)}")
    rule = _strict(PolicyRule, data, where)
    for feature in rule.deny:
        if feature not in FEATURES:
            raise InvalidArgument(f"{where}: unknown feature {feature!r}", hint=_near(feature))
    if rule.minimum == "none" and not rule.deny:
        raise InvalidArgument(f"{where}: rule {rule.name!r} demands nothing", hint="give it minimum or deny")
    return rule


def _near(feature: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(feature, FEATURES)
    return f"did you mean {', '.join(near)}?" if near else "drupe system capabilities lists them"


def _check_names(config: NodeConfig, where: str) -> None:
    """The kinds that are named exist, and no two rules have one name: a refusal names its rule."""
    for name in (config.sandbox, *config.kinds):
        if name not in ("", AUTO):
            try:
                kind_of(name)
            except DrupeError as error:
                raise InvalidArgument(f"{where}: {error}", hint=error.hint) from None
    names = [rule.name for rule in config.policy]
    for name in names:
        if names.count(name) > 1:
            raise InvalidArgument(f"{where}: two policy rules are named {name!r}")


def _strict(kind: type[S], data: Any, where: str) -> S:
    """`decode`, whose error for an unknown key names those that are known."""
    known = kind.__struct_fields__
    for key in data if isinstance(data, dict) else ():
        if key not in known:
            hint = f"known keys: {', '.join(known)}" if known else "nothing can be set here"
            raise InvalidArgument(f"{where}: unknown key {key!r}", hint=hint)
    return decode(kind, data, where=where)
