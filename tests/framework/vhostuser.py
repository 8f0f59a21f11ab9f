"""A network card that a process of the host serves by vhost-user: it answers ARP and pings for one address.

https://www.qemu.org/docs/master/interop/vhost-user.html, virtio 1.2: 2.7 Split Virtqueues, 5.1 Network Device.
"""

from __future__ import annotations

import mmap
import os
import selectors
import socket
import struct
import threading
from pathlib import Path

_VERSION_1, _PROTOCOL_FEATURES = 1 << 32, 1 << 30
FEATURES = _VERSION_1 | _PROTOCOL_FEATURES
_REPLY = 0x1 | 0x4  # version of the protocol, and that it is an answer
_GET_FEATURES, _SET_FEATURES, _SET_MEM_TABLE = 1, 2, 5
_SET_NUM, _SET_ADDR, _SET_BASE, _GET_BASE, _SET_KICK, _SET_CALL = 8, 9, 10, 11, 12, 13
_GET_PROTOCOL_FEATURES, _GET_QUEUE_NUM, _SET_ENABLE = 15, 17, 18
_NEXT = 1
_INTO_GUEST, _OUT_OF_GUEST = 0, 1
MAC = bytes.fromhex("020000000099")


class Queue:
    """A virtqueue. at: where its three parts are, in the monitor's addresses."""

    def __init__(self) -> None:
        self.size = self.taken = self.used = 0
        self.at = (0, 0, 0)
        self.kick = self.call = -1
        self.enabled = False


class Backend(threading.Thread):
    """Listens at `path` and serves one machine, until `close`. pinged: echo requests that it has answered."""

    def __init__(self, path: Path, address: str) -> None:
        super().__init__(daemon=True)
        self.address, self.pinged, self.features = socket.inet_aton(address), 0, 0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._wakes, self._wake = os.pipe()
        self._regions: list[tuple[int, int, int, mmap.mmap, int]] = []
        self._queues = [Queue(), Queue()]
        self._peers: list[socket.socket] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakes, selectors.EVENT_READ, "stop")
        self._selector.register(self._listener, selectors.EVENT_READ, "accept")
        self.start()

    def close(self) -> None:
        os.write(self._wake, b".")
        self.join()
        self._regions = []
        for peer in self._peers:
            peer.close()
        for fd in (self._wakes, self._wake, *(fd for queue in self._queues for fd in (queue.kick, queue.call))):
            if fd >= 0:
                os.close(fd)
        self._listener.close()
        self._selector.close()

    def run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data == "stop":
                    return
                if key.data == "accept":
                    peer, _ = self._listener.accept()
                    self._peers.append(peer)
                    self._selector.register(peer, selectors.EVENT_READ, "message")
                elif key.data == "message":
                    self._message(key.fileobj)  # type: ignore[arg-type]
                else:
                    os.read(key.fd, 8)
                    self._serve()

    # -- the monitor's words ----------------------------------------------------------------------------------------

    def _message(self, peer: socket.socket) -> None:
        head, fds, _, _ = socket.recv_fds(peer, 12, 8)
        if len(head) < 12:
            self._selector.unregister(peer)
            return
        request, _, size = struct.unpack("<3I", head)
        body = peer.recv(size, socket.MSG_WAITALL) if size else b""
        answer = self._answer(request, body, fds)
        if answer is not None:
            peer.sendall(struct.pack("<3I", request, _REPLY, len(answer)) + answer)

    def _answer(self, request: int, body: bytes, fds: list[int]) -> bytes | None:
        if request == _GET_FEATURES:
            return struct.pack("<Q", FEATURES)
        if request == _GET_PROTOCOL_FEATURES:
            return struct.pack("<Q", 0)
        if request == _GET_QUEUE_NUM:
            return struct.pack("<Q", 1)
        if request == _SET_FEATURES:
            (self.features,) = struct.unpack("<Q", body)
        elif request == _SET_MEM_TABLE:
            self._map(body, fds)
        elif request in (_SET_NUM, _SET_BASE, _GET_BASE, _SET_ENABLE, _SET_ADDR):
            return self._set(request, body)
        elif request in (_SET_KICK, _SET_CALL):
            self._wire(request, struct.unpack("<Q", body)[0], fds)
        else:  # SET_OWNER, SET_VRING_ERR: of no use here
            for fd in fds:
                os.close(fd)
        return None

    def _map(self, body: bytes, fds: list[int]) -> None:
        self._regions = []
        for number, fd in enumerate(fds):
            guest, size, monitor, offset = struct.unpack_from("<4Q", body, 8 + 32 * number)
            self._regions.append((guest, size, monitor, mmap.mmap(fd, size + offset), offset))
            os.close(fd)

    def _set(self, request: int, body: bytes) -> bytes | None:
        index, value = struct.unpack_from("<2I", body)
        queue = self._queues[index]
        if request == _SET_NUM:
            queue.size = value
        elif request == _SET_BASE:
            queue.taken = queue.used = value
        elif request == _SET_ENABLE:
            queue.enabled = bool(value)
        elif request == _SET_ADDR:
            descriptors, used, available = struct.unpack_from("<3Q", body, 8)
            queue.at = descriptors, available, used
        else:
            if queue.kick >= 0:
                self._selector.unregister(queue.kick)
                os.close(queue.kick)
                queue.kick = -1
            return struct.pack("<2I", index, queue.taken)
        return None

    def _wire(self, request: int, word: int, fds: list[int]) -> None:
        queue = self._queues[word & 0xFF]
        name = "kick" if request == _SET_KICK else "call"
        if (old := getattr(queue, name)) >= 0:
            if name == "kick":
                self._selector.unregister(old)
            os.close(old)
        setattr(queue, name, fds[0] if fds else -1)
        if name == "kick" and fds:
            self._selector.register(fds[0], selectors.EVENT_READ, "kick")

    # -- frames -----------------------------------------------------------------------------------------------------

    def _at(self, address: int, size: int, *, guest: bool) -> memoryview:
        for begin, length, monitor, mapped, offset in self._regions:
            base = begin if guest else monitor
            if base <= address and address + size <= base + length:
                where = address - base + offset
                return memoryview(mapped)[where : where + size]
        raise ValueError(f"no memory at {address:#x}")

    def _next(self, queue: Queue) -> tuple[int, list[memoryview]] | None:
        """A chain of buffers that the guest has made available."""
        descriptors, available, _ = queue.at
        if not (queue.size and descriptors):
            return None
        (index,) = struct.unpack("<H", self._at(available + 2, 2, guest=False))
        if index == queue.taken & 0xFFFF:
            return None
        (head,) = struct.unpack("<H", self._at(available + 4 + 2 * (queue.taken % queue.size), 2, guest=False))
        queue.taken += 1
        buffers, at, flags = [], head, _NEXT
        while flags & _NEXT:
            address, size, flags, following = struct.unpack("<QIHH", self._at(descriptors + 16 * at, 16, guest=False))
            buffers.append(self._at(address, size, guest=True))
            at = following
        return head, buffers

    def _give_back(self, queue: Queue, head: int, written: int) -> None:
        used = queue.at[2]
        self._at(used + 4 + 8 * (queue.used % queue.size), 8, guest=False)[:] = struct.pack("<2I", head, written)
        queue.used += 1
        self._at(used + 2, 2, guest=False)[:] = struct.pack("<H", queue.used & 0xFFFF)
        if queue.call >= 0:
            os.write(queue.call, struct.pack("<Q", 1))

    @property
    def _header_bytes(self) -> int:
        """Before version 1, without merged buffers, it does not end in their number."""
        return 12 if self.features & _VERSION_1 else 10

    def _serve(self) -> None:
        out = self._queues[_OUT_OF_GUEST]
        while out.enabled and (found := self._next(out)) is not None:
            frame = b"".join(found[1])[self._header_bytes :]
            self._give_back(out, found[0], 0)
            if (answer := self._reply(frame)) is not None:
                self._send(answer)

    def _send(self, frame: bytes) -> None:
        queue = self._queues[_INTO_GUEST]
        if not queue.enabled or (found := self._next(queue)) is None:
            return
        left = whole = struct.pack("<BBHHHHH", 0, 0, 0, 0, 0, 0, 1)[: self._header_bytes] + frame
        for buffer in found[1]:
            part, left = left[: len(buffer)], left[len(buffer) :]
            buffer[: len(part)] = part
        self._give_back(queue, found[0], len(whole))

    def _reply(self, frame: bytes) -> bytes | None:
        """RFC 826, RFC 792: the checksum of an echo's answer is larger by what its type is smaller."""
        sender, kind = frame[6:12], frame[12:14]
        if kind == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == self.address:
            return sender + MAC + kind + frame[14:20] + b"\0\2" + MAC + self.address + frame[22:32]
        if kind == b"\x08\0" and frame[23] == 1 and frame[30:34] == self.address and frame[34] == 8:
            self.pinged += 1
            total = struct.unpack("!H", frame[36:38])[0] + 0x800
            checked = struct.pack("!BBH", 0, 0, (total & 0xFFFF) + (total >> 16))
            return sender + MAC + kind + frame[14:26] + frame[30:34] + frame[26:30] + checked + frame[38:]
        return None
