"""What a clumsy or malicious client, image or workload must not achieve, against a real daemon."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from drupe.errors import DrupeError
from drupe.rpc.client import Client
from drupe.spec.control import FileRef, FileWrite, Ref
from framework.daemon import Daemon

pytestmark = pytest.mark.root

PROMPT_S = 5.0


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with daemon.client() as client:
        yield client
    daemon.delete_pods()


def test_idle_transfers_hold_up_nobody(daemon: Daemon, client: Client) -> None:
    """Each `drupe cp - …` from a terminal waits for its user: pods must live on meanwhile."""
    pod = daemon.run_pod("sleep", "1000").name
    pipes = [os.pipe() for _ in range(40)]
    writers = [threading.Thread(target=_write, args=(daemon, pod, read_end)) for read_end, _ in pipes]
    for writer in writers:
        writer.start()
    try:
        client.call("file.stat", FileRef(ref=pod, path="/etc"), timeout_s=PROMPT_S)
        client.call("pod.pause", Ref(ref=pod), timeout_s=PROMPT_S)
        client.call("pod.resume", Ref(ref=pod), timeout_s=PROMPT_S)
    finally:
        for _, write_end in pipes:
            os.close(write_end)
        for writer in writers:
            writer.join()


def _write(daemon: Daemon, pod: str, data: int) -> None:
    with daemon.client() as own, suppress(DrupeError):
        own.call("file.write", FileWrite(ref=pod, path=f"/tmp/{data}"), fds={"data": data}, timeout_s=60)
    os.close(data)
