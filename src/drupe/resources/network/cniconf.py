"""CNI network configurations: found, checked, and derived into what one plug-in is given (CNI spec 1.1, 1 and 5)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drupe.errors import InvalidArgument, NotFound, Unsupported

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
_SUFFIXES = (".conflist", ".conf", ".json")
_RUNTIME_KEYS = ("capabilities", "runtimeConfig", "prevResult")


def load(config: str, directory: str) -> dict[str, Any]:
    """A conflist. config: a path, a file name or network name in `directory`, or "" for the first file there.

    A single plug-in's configuration becomes a list of one. Raises NotFound, InvalidArgument, Unsupported (version).
    """
    if "/" in config:
        return _read(Path(config))
    files = sorted(path for path in _entries(Path(directory)) if path.suffix in _SUFFIXES)
    if not config:
        if not files:
            raise NotFound(f"no CNI configuration in {directory}", stage="network", hint="add a .conflist file")
        return _read(files[0])
    for path in files:
        if config in (path.name, path.stem):
            return _read(path)
    for path in files:
        if _name_in(path) == config:
            return _read(path)
    raise NotFound(f"no CNI network {config!r} in {directory}", stage="network")


def has_capability(conflist: dict[str, Any], capability: str) -> bool:
    """Whether any plug-in of the list takes it."""
    return any(plugin.get("capabilities", {}).get(capability) for plugin in conflist["plugins"])


def for_plugin(
    conflist: dict[str, Any], index: int, runtime_config: dict[str, Any], previous: dict[str, Any] | None
) -> dict[str, Any]:
    """What plug-in number `index` gets on stdin: its own keys, the capabilities it declares, and prevResult."""
    plugin = conflist["plugins"][index]
    derived = {key: value for key, value in plugin.items() if key not in _RUNTIME_KEYS}
    derived |= {"name": conflist["name"], "cniVersion": conflist["cniVersion"]}
    wanted = {k: v for k, v in runtime_config.items() if plugin.get("capabilities", {}).get(k)}
    if wanted:
        derived["runtimeConfig"] = wanted
    if previous is not None:
        derived["prevResult"] = previous
    return derived


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _name_in(path: Path) -> str:
    try:
        return str(_parse(path).get("name", ""))
    except InvalidArgument:
        return ""


def _read(path: Path) -> dict[str, Any]:
    data = _parse(path)
    if "plugins" not in data:
        data = {"cniVersion": data.get("cniVersion", ""), "name": data.get("name", ""), "plugins": [data]}
    plugins = data["plugins"]
    if not isinstance(plugins, list) or not plugins or not all(isinstance(p, dict) for p in plugins):
        raise InvalidArgument(f"CNI configuration {path}: plugins must be a list of objects", stage="network")
    for plugin in plugins:
        kind = plugin.get("type")
        if not isinstance(kind, str) or not kind or "/" in kind or kind in (".", ".."):
            raise InvalidArgument(f"CNI configuration {path}: bad plug-in type {kind!r}", stage="network")
        if not isinstance(plugin.get("capabilities", {}), dict):
            raise InvalidArgument(f"CNI configuration {path}: capabilities must be an object", stage="network")
    if not isinstance(data.get("name"), str) or not data["name"]:
        raise InvalidArgument(f"CNI configuration {path}: no name", stage="network")
    version = data.get("cniVersion")
    if version not in VERSIONS:
        hint = f"use one of {', '.join(VERSIONS)}"
        raise Unsupported(f"CNI configuration {path}: version {version!r} is not supported", stage="network", hint=hint)
    return data


def _parse(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise NotFound(f"CNI configuration {path}", stage="network", cause=error.strerror or "") from None
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"CNI configuration {path} is not JSON", stage="network", cause=str(error)) from None
    if not isinstance(data, dict):
        raise InvalidArgument(f"CNI configuration {path} is not a JSON object", stage="network")
    return data
