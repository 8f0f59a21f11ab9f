"""Who we are to a registry: credentials from the call, the usual files and credential helpers."""

from __future__ import annotations

import base64
import binascii
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drupe.errors import HelperFailed, InvalidArgument, NotFound

_HELPER_TIMEOUT_S = 30
_DOCKER_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")
_TOKEN_USER = "<token>"  # noqa: S105 - what a helper says instead of a user name


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user with password, or an identity token (OAuth2 refresh token)."""

    username: str
    password: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, …)"  # secrets stay out of logs


def find_credentials(registry: str, auth: str | None) -> Credentials | None:
    """`auth` ("user:password") if given, else what config files or helpers know; None is anonymous.

    Raises InvalidArgument for a malformed `auth` or config file, HelperFailed for a helper that fails.
    """
    if auth is not None:
        username, colon, password = auth.partition(":")
        if not colon or not username:
            raise InvalidArgument("bad registry credentials", hint="write user:password")
        return Credentials(username, password)
    for path in config_files():
        if path.is_file() and (found := _from_config(path, registry)):
            return found
    return None


def config_files() -> list[Path]:
    """Where Docker and Podman keep logins, in the order in which they are asked."""
    home = Path.home()
    docker = Path(os.environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    podman = [Path(runtime) / "containers/auth.json"] if runtime else []
    explicit = os.environ.get("REGISTRY_AUTH_FILE")
    return [*([Path(explicit)] if explicit else []), docker, *podman, home / ".config/containers/auth.json"]


def _from_config(path: Path, registry: str) -> Credentials | None:
    try:
        config = json.loads(path.read_bytes())
        helpers, auths = dict(config.get("credHelpers") or {}), dict(config.get("auths") or {})
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidArgument(f"{path} is not a registry login file", cause=str(error)) from None
    keys = _DOCKER_HUB_KEYS if registry == "docker.io" else (registry,)
    helper = next((helpers[key] for key in keys if key in helpers), config.get("credsStore"))
    if helper and (found := _from_helper(str(helper), keys[0])):
        return found
    for key, entry in auths.items():
        if key in keys or _host(key) in keys:
            return _from_entry(path, key, entry)
    return None


def _host(key: str) -> str:
    return key.removeprefix("https://").removeprefix("http://").split("/")[0]


def _from_entry(path: Path, key: str, entry: Any) -> Credentials | None:
    if not isinstance(entry, dict):
        raise InvalidArgument(f"{path}: the login of {key} is not an object")
    if token := entry.get("identitytoken"):
        return Credentials("", identity_token=str(token))
    if entry.get("username"):
        return Credentials(str(entry["username"]), str(entry.get("password", "")))
    if not entry.get("auth"):
        return None
    try:
        username, _, password = base64.b64decode(str(entry["auth"]), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise InvalidArgument(f"{path}: the login of {key} is not base64") from None
    return Credentials(username, password.rstrip("\0"))


def _from_helper(name: str, server: str) -> Credentials | None:
    """Docker's credential helper protocol: `docker-credential-NAME get` with the server on stdin."""
    program = f"docker-credential-{name}"
    if "/" in name or not shutil.which(program):
        raise NotFound(f"credential helper {program} is not installed", hint="install it or log in again without it")
    try:
        done = subprocess.run(
            [program, "get"], input=server, capture_output=True, text=True, timeout=_HELPER_TIMEOUT_S, check=False
        )
        if done.returncode != 0:
            if "not found" in done.stdout + done.stderr:
                return None
            raise HelperFailed(f"{program} exited with {done.returncode}", cause=(done.stderr or done.stdout)[-200:])
        answer = json.loads(done.stdout)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except subprocess.TimeoutExpired:
        raise HelperFailed(f"{program} did not answer within {_HELPER_TIMEOUT_S} s") from None
    except (ValueError, KeyError, TypeError):
        raise HelperFailed(f"{program} gave no valid answer") from None
    if username == _TOKEN_USER:
        return Credentials("", identity_token=secret)
    return Credentials(username, secret)
