"""What the programs behind the REST APIs answer: their state, without a machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from framework.vmmapi import Answer, Request


class CloudModel:
    """Cloud Hypervisor: created, running, paused; devices by id; memory by resizing."""

    def __init__(self, directory: Path) -> None:
        self.state = ""
        self.config: dict[str, Any] = {}
        self.devices: set[str] = set()
        self.held: set[str] = set()  # devices of which the guest does not let go
        self.events = directory / "events.json"
        self.events.touch()

    def __call__(self, request: Request) -> Answer | None:
        name = request.path.removeprefix("/vm.").replace("-", "_")
        if request.path == "/vmm.shutdown":
            self.tell("vmm", "shutdown")
            return None
        if not self.state and name not in ("create", "restore"):
            return 500, ["The API server could not find the VM", "VM is not created"]
        if name.startswith("add_"):
            return self._add(request)
        method: Callable[[Any], Answer | None] = getattr(self, name)
        return method(request.body)

    def tell(self, source: str, event: str) -> None:
        """One line of --event-monitor."""
        with self.events.open("a") as file:
            file.write(json.dumps({"timestamp": {"secs": 1, "nanos": 0}, "source": source, "event": event}, indent=1))

    def create(self, body: Any) -> None:
        self.state, self.config = "Created", body
        lists = [body.get(name, []) for name in ("disks", "net", "fs", "devices")]
        self.devices = {device["id"] for devices in lists for device in devices}

    def restore(self, body: Any) -> None:
        source = Path(urlparse(body["source_url"]).path)
        assert (source / "memory-ranges").read_bytes()
        assert (source / "state.json").read_bytes()
        self.create(json.loads((source / "config.json").read_text()))
        self.state = "Paused"

    def boot(self, _: Any) -> None:
        self.state = "Running"

    def pause(self, _: Any) -> Answer | None:
        if self.state != "Running":
            return 405, ["The VM could not be paused", "it is not running"]
        self.state = "Paused"
        return None

    def resume(self, _: Any) -> Answer | None:
        if self.state != "Paused":
            return 405, ["The VM could not be resumed", "it is not paused"]
        self.state = "Running"
        return None

    def snapshot(self, body: Any) -> Answer | None:
        if self.state != "Paused":
            return 500, ["The VM could not be snapshotted", "it is not paused"]
        target = Path(urlparse(body["destination_url"]).path)
        (target / "config.json").write_text(json.dumps(self.config))
        (target / "memory-ranges").write_bytes(b"memory")
        (target / "state.json").write_bytes(b"{}")
        return None

    def info(self, _: Any) -> Answer:
        told = {"config": self.config, "state": self.state, "device_tree": {name: {} for name in self.devices}}
        size = self.config["memory"]["size"] + self.config["memory"].get("hotplugged_size", 0)
        return 200, told | {"memory_actual_size": size}

    def counters(self, _: Any) -> Answer:
        return 200, {"_disk0": {"read_bytes": 7}}

    def _add(self, request: Request) -> Answer | None:
        if request.body["id"] in self.devices:
            return 409, ["The device could not be added", "its identifier is taken"]
        if request.path == "/vm.add-net" and ("tap" in request.body) == bool(request.fds):
            return 400, ["a tap or its descriptors"]
        self.devices.add(request.body["id"])
        return (200, {"id": request.body["id"], "bdf": "0000:00:05.0"}) if self.state == "Running" else None

    def remove_device(self, body: Any) -> Answer | None:
        if body["id"] not in self.devices:
            return 404, ["no such device"]
        self.devices -= {body["id"]} - self.held
        return None

    def resize(self, body: Any) -> None:
        if "desired_vcpus" in body:
            self.config["cpus"]["boot_vcpus"] = body["desired_vcpus"]
        if "desired_ram" in body:
            self.config["memory"]["hotplugged_size"] = body["desired_ram"] - self.config["memory"]["size"]


class FireModel:
    """Firecracker: before and after the start. root: where its paths begin ("" without a jail)."""

    def __init__(self, version: str = "1.16.1", root: Path | None = None) -> None:
        self.version, self.root = version, root
        self.state = "Not started"
        self.size: dict[str, int] = {"vcpu_count": 1, "mem_size_mib": 128}
        self.plugged_mib: int | None = None
        self.balloon_mib = 0
        self.put: dict[str, Any] = {}

    def path(self, text: str) -> Path:
        return (self.root / text.lstrip("/")) if self.root else Path(text)

    def __call__(self, request: Request) -> Answer | None:
        known: dict[str, Callable[[Any], Answer | None]] = {
            "GET /": lambda _: (200, {"app_name": "Firecracker", "id": "m", "state": self.state}),
            "GET /version": lambda _: (200, {"firecracker_version": self.version}),
            "GET /machine-config": lambda _: (200, self.size),
            "GET /hotplug/memory": lambda _: self._plugged(),
            "PUT /machine-config": self._set_size,
            "PUT /hotplug/memory": lambda _: self._plug(0),
            "PATCH /hotplug/memory": lambda body: self._plug(body["requested_size_mib"]),
            "PATCH /balloon": self._inflate,
            "PATCH /vm": self._set_state,
            "PUT /actions": self._act,
            "PUT /snapshot/create": self._save,
            "PUT /snapshot/load": self._load,
        }  # fmt: skip
        if str(request) in known:
            return known[str(request)](request.body)
        if request.method == "PUT":
            self.put[request.path] = request.body
            files = [
                request.body.get(name) for name in ("path_on_host", "kernel_image_path", "initrd_path", "log_path")
            ]
            lacking = [name for name in files if name and not self.path(name).exists()]
            return (400, {"fault_message": f"no such file: {lacking[0]}"}) if lacking else None
        return None

    def _set_size(self, body: Any) -> None:
        self.size = {"vcpu_count": body["vcpu_count"], "mem_size_mib": body["mem_size_mib"]}

    def _plugged(self) -> Answer:
        return (
            (200, {"plugged_size_mib": self.plugged_mib})
            if self.plugged_mib is not None
            else (400, {"fault_message": ""})
        )

    def _plug(self, size_mib: int) -> None:
        self.plugged_mib = size_mib

    def _inflate(self, body: Any) -> None:
        self.balloon_mib = body["amount_mib"]

    def _set_state(self, body: Any) -> Answer | None:
        if self.state == "Not started":
            return 400, {"fault_message": "The requested operation is not supported before starting the microVM."}
        self.state = {"Paused": "Paused", "Resumed": "Running"}[body["state"]]
        return None

    def _act(self, body: Any) -> Answer | None:
        if body["action_type"] == "InstanceStart":
            if "/boot-source" not in self.put:
                return 400, {"fault_message": "Cannot start microvm without kernel configuration."}
            self.state = "Running"
        elif body["action_type"] == "FlushMetrics":
            with self.path(self.put["/metrics"]["metrics_path"]).open("a") as file:
                file.write('{"utc_timestamp_ms": 5, "block": {"read_bytes": 7}}\n')
        return None

    def _save(self, body: Any) -> Answer | None:
        if self.state != "Paused":
            return 400, {"fault_message": "The microVM is not paused."}
        for name in ("snapshot_path", "mem_file_path"):
            self.path(body[name]).write_bytes(b"saved")
        return None

    def _load(self, body: Any) -> Answer | None:
        if self.put.keys() - {"/logger", "/metrics"}:
            return 400, {"fault_message": "Loading a snapshot is not allowed after configuring resources."}
        if "vsock_override" in body and self.version < "1.16":
            return 400, {"fault_message": "unknown field `vsock_override`"}
        assert self.path(body["snapshot_path"]).read_bytes() == b"saved"
        assert self.path(body["mem_backend"]["backend_path"]).read_bytes() == b"saved"
        self.state = "Paused"
        return None
