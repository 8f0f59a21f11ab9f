"""The images that critest names, made of this host's programs, and a registry that answers for all registries.

One image cannot be made: critest names it by the digest of a published one.
"""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drupe.images.build import image_from_tree
from drupe.images.progress import silent
from drupe.images.store import ImageStore
from framework.cri_host import CriHost
from framework.images import SCRIPTS

CERTIFICATES = "/run/containerd-registries"  # containerd's name for the directory of its registries' settings
ENVIRONMENT = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
NGINX = """user www-data;
pid /var/run/nginx.pid;
error_log /dev/stderr;
events {{ worker_connections 64; }}
http {{ access_log /dev/stdout; server {{ listen {port}; root /www; }} }}
"""
SERVE = ["/usr/sbin/nginx", "-g", "daemon off;"]


@dataclass(frozen=True)
class Image:
    """One image. files: contents of further files. programs: of this host's, by their new path, with their libraries.
    setuid: whether those are root's for everybody."""

    tags: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    programs: Mapping[str, str] = field(default_factory=dict)
    setuid: bool = False


def _server(tag: str, port: int) -> Image:
    files = {"etc/nginx/nginx.conf": NGINX.format(port=port), "www/index.html": "It works!\n"}
    return Image((tag,), {"Cmd": SERVE}, files, {"usr/sbin/nginx": "nginx"})


def _marked(*tags: str, mark: str) -> Image:
    return Image(tuple(f"k8s-staging-cri-tools/{tag}" for tag in tags), files={mark: ""})


def _of_user(name: str, user: str, files: Mapping[str, str] | None = None) -> Image:
    return Image((f"k8s-staging-cri-tools/{name}:latest",), {"User": user}, files or {})


MEMBERS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home:/bin/sh\n",
    "etc/group": "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n",
}
LISTED = ("1", "1.35.0-glibc", "1-uclibc", "1-glibc", "1-musl")  # what the benchmark of images lists
_HTTPD = ["/bin/sh", "-c", "echo httpd is ready; exec httpd -f -vv -p 80 -h /www"]
IMAGES = [
    Image(("e2e-test-images/busybox:1.29-2", *(f"docker/library/busybox:{tag}" for tag in LISTED))),
    _server("e2e-test-images/nginx:1.14-2", 80),
    _server("k8s-staging-cri-tools/hostnet-nginx-amd64:latest", 12003),
    Image(("e2e-test-images/httpd:2.4.39-4",), {"Cmd": _HTTPD}, {"www/index.html": "It works!\n"}),
    Image(
        ("e2e-test-images/nonewprivs:1.3",), {"Cmd": ["/bin/sh", "-c", 'echo "Effective uid: $(/bin/whose -u)"']},
        programs={"bin/whose": "id"}, setuid=True,
    ),
    Image(("pause:3.9",), {"Entrypoint": ["/bin/sleep", "2147483647"]}),
    _of_user("test-image-user-uid", "1002"),
    _of_user("test-image-user-username", "www-data"),
    _of_user("test-image-user-uid-group", "1003:1004"),
    _of_user("test-image-user-username-group", "www-data:1004"),
    _of_user("test-image-predefined-group", "1000", MEMBERS),
    *(_marked(f"test-image-{name}:latest", mark=f"test-image-{name}") for name in ("1", "2", "3", "latest")),
    _marked("test-image-tags:1", "test-image-tags:2", "test-image-tags:3", mark="same-image"),
    _marked("test-image-tag:test", mark="test"),
    _marked("test-image-tag:all", mark="all"),
]  # fmt: skip


def serve(host: CriHost) -> None:
    """Start a registry in there that has all of them, and have containerd ask it instead of every other. Call it after
    `open`."""
    registry = host.serve_registry()
    mirror = Path(host.path(CERTIFICATES)) / "_default"
    mirror.mkdir(parents=True)
    (mirror / "hosts.toml").write_text(f'[host."http://{registry}"]\n  capabilities = ["pull", "resolve"]\n')
    store = ImageStore(host.directory / "drupe/images")
    for number, image in enumerate(IMAGES):
        tree = host.directory / f"tree-{number}"
        _make_tree(tree, image)
        for tag in image.tags:
            config = {"Env": ENVIRONMENT, "Cmd": ["sh"], **image.config}
            image_from_tree(store, tree, tag=f"{registry}/{tag}", config=config, created_s=0, progress=silent)
            host.push(f"{registry}/{tag}")
        shutil.rmtree(tree)


def _make_tree(tree: Path, image: Image) -> None:
    tree.mkdir()
    made = runpy.run_path(str(SCRIPTS / "make-busybox-image.py"))
    made["make_tree"](tree, made["busybox_binary"](""))
    for link in [
        path for path in tree.rglob("*") if path.is_symlink()
    ]:  # a test hides one of them, which must not hide all
        link.unlink()
        link.hardlink_to(tree / "bin/busybox")
    (tree / "var/run").symlink_to("/run")
    for name in ("var/log/nginx", "var/lib/nginx"):
        (tree / name).mkdir(parents=True)
    for path, program in {"usr/bin/pgrep": "pgrep", "usr/bin/ipcs": "ipcs", **image.programs}.items():
        _copy_program(tree, path, program)
        if image.setuid and path in image.programs:
            (tree / path).chmod(0o4755)
    for path, text in image.files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)


def _copy_program(tree: Path, path: str, program: str) -> None:
    """A program of this host's and the libraries that it loads; busybox has none of some names."""
    found = shutil.which(program, path="/usr/bin:/bin:/usr/sbin:/sbin")
    assert found, f"no program {program} on this host (scripts/setup.sh --tests)"
    (tree / path).parent.mkdir(parents=True, exist_ok=True)
    (tree / path).unlink(missing_ok=True)
    shutil.copy(found, tree / path)
    listed = subprocess.run(["ldd", found], capture_output=True, text=True, check=True).stdout
    for library in re.findall(r"(/\S+) \(0x", listed):
        (tree / library[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, tree / library[1:])
