"""Debian's docker-registry on loopback, a proxy that cuts connections, and a registry that wants bearer tokens."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from framework.probes import needs_program

READY_TIMEOUT_S = 15.0


class DockerRegistry:
    """A registry process. auth: (user, password) that it demands. tls: directory with cert.pem and key.pem."""

    def __init__(self, directory: Path, *, auth: tuple[str, str] | None = None, tls: Path | None = None) -> None:
        needs_program("docker-registry")
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        config = directory / "registry.json"
        config.write_text(json.dumps(self._config(directory, auth, tls)))
        self._log = (directory / "registry.log").open("wb")
        self._process = subprocess.Popen(
            ["docker-registry", "serve", config], stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    def _config(self, directory: Path, auth: tuple[str, str] | None, tls: Path | None) -> dict[str, Any]:
        http: dict[str, Any] = {"addr": self.host}
        if tls is not None:
            http["tls"] = {"certificate": str(tls / "cert.pem"), "key": str(tls / "key.pem")}
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
            "http": http,
        }  # JSON is YAML
        if auth is not None:
            htpasswd = directory / "htpasswd"
            subprocess.run(["htpasswd", "-Bbc", htpasswd, *auth], check=True, capture_output=True)
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(htpasswd)}}
        return config

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError(f"docker-registry did not start: {Path(self._log.name).read_text()[-500:]}")

    def requests(self) -> str:
        """The access log so far."""
        return Path(self._log.name).read_text()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_certificate(directory: Path) -> Path:
    """A self-signed certificate for 127.0.0.1; its own authority."""
    needs_program("openssl")
    directory.mkdir()
    line = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
        " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    )
    subprocess.run(line.split(), cwd=directory, check=True, capture_output=True)
    return directory


class CuttingProxy:
    """A TCP proxy before a registry that closes each of the first `cuts` long answers after `after_bytes`."""

    def __init__(self, port: int, *, after_bytes: int, cuts: int) -> None:
        self._target, self._after, self._cuts = port, after_bytes, cuts
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut = 0
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._start(self._accept)

    def _start(self, work: Any, *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                self._start(self._pump, client, server, False)
                self._start(self._pump, server, client, True)

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        total = 0
        with contextlib.suppress(OSError):
            while data := source.recv(16384):
                total += len(data)
                if answers and total > self._after and self._may_cut():
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _may_cut(self) -> bool:
        with self._lock:
            if self.cut == self._cuts:
                return False
            self.cut += 1
            return True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join(5)


class TokenRegistry:
    """A tiny registry that serves one image and wants a bearer token (Docker's token protocol)."""

    def __init__(self, manifest: bytes, media_type: str, blobs: dict[str, bytes]) -> None:
        self.tokens_given: list[str] = []
        self.faults: dict[str, list[int]] = {}
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Quiet."""

            def do_GET(self) -> None:
                registry.answer(self, manifest, media_type, blobs)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def answer(
        self, handler: BaseHTTPRequestHandler, manifest: bytes, media_type: str, blobs: dict[str, bytes]
    ) -> None:
        """One GET: token, fault, challenge, manifest, blob or 404."""
        path = handler.path.partition("?")[0]
        if path == "/token":
            return self._token(handler)
        if pending := self.faults.get(path.rpartition("/")[2]):
            return self._send(handler, pending.pop(0), b"{}", **{"Retry-After": "0"})
        if handler.headers.get("Authorization") != "Bearer good":
            challenge = f'Bearer realm="http://{self.host}/token",service="test",scope="repository:app:pull"'
            return self._send(handler, 401, b"{}", **{"WWW-Authenticate": challenge})
        if "/manifests/" in path:
            return self._send(handler, 200, manifest, **{"Content-Type": media_type})
        digest = path.rpartition("/")[2]
        if digest in blobs:
            return self._send(handler, 200, blobs[digest])
        return self._send(handler, 404, b'{"errors":[{"code":"BLOB_UNKNOWN","message":"no such blob"}]}')

    def _token(self, handler: BaseHTTPRequestHandler) -> None:
        self.tokens_given.append(handler.headers.get("Authorization", "anonymous"))
        self._send(handler, 200, b'{"token": "good"}')

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@contextlib.contextmanager
def closing_registry(directory: Path, **options: Any) -> Iterator[DockerRegistry]:
    directory.mkdir(exist_ok=True)
    registry = DockerRegistry(directory, **options)
    try:
        yield registry
    finally:
        registry.close()


def random_tree(directory: Path, *, size: int = 300_000) -> Path:
    """A directory with one file that does not compress."""
    directory.mkdir(parents=True)
    (directory / f"data-{directory.name}").write_bytes(os.urandom(size))
    return directory
