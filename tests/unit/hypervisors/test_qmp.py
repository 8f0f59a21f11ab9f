"""A monitor that says what it never does: an error for whoever asks, and no traceback in a log."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from drupe.errors import Unavailable
from drupe.hypervisors.qmp import Qmp

_GREETING = b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}\n'
_AGREED = b'{"return": {}}\n'
LIES = {
    "no JSON": b'{"x": \n',
    "no object": b"[]\n",
    "nested without end": b"[" * 200_000 + b"\n",
    "no text": b"\xff\xfe\n",
    "a line without end": b"x" * (16 << 20),
    "an event that is a list": b'{"event": ["STOP"], "timestamp": 4}\n',
    "an id that is a list": b'{"return": 3, "id": []}\n',
}


@pytest.mark.parametrize("soon", [True, False], ids=["with the greeting", "later"])
@pytest.mark.parametrize("lie", LIES)
def test_nobody_has_to_ask_for_a_lie_to_be_forgotten(
    lie: str, soon: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also while nobody asks, and before anybody could."""
    go = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_GREETING)
        await reader.read(4096)
        writer.write(_AGREED)
        if not soon:
            await go.wait()
        writer.write(LIES[lie])
        await reader.read()
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_unix_server(serve, str(tmp_path / "qmp.sock"))
        told: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        with pytest.raises(Unavailable, match="gone"):
            monitor = await Qmp.connect(tmp_path / "qmp.sock", timeout_s=30.0)
            go.set()
            await asyncio.wait_for(monitor.event(), 30.0)
        gc.collect()  # nobody has it any more, nor hangs up
        await asyncio.sleep(0)
        server.close()
        assert not told

    asyncio.run(scenario())
    gc.collect()
    assert not [record for record in caplog.records if record.exc_info or "never retrieved" in record.getMessage()]


@pytest.mark.parametrize("steps", range(12))
def test_who_closes_while_the_monitor_goes_leaves_no_error_behind(steps: int, tmp_path: Path) -> None:
    """A machine that was killed, at each moment between its end and that somebody has noticed it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_GREETING)
        await reader.read(4096)
        writer.write(_AGREED)
        await writer.drain()
        await reader.read(1)
        writer.transport.abort()

    async def scenario() -> None:
        server = await asyncio.start_unix_server(serve, str(tmp_path / "qmp.sock"))
        told: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        monitor = await Qmp.connect(tmp_path / "qmp.sock", timeout_s=30.0)
        monitor._client._writer.write(b"\n")  # type: ignore[union-attr] # it goes now
        await monitor._client.runstate_changed()
        for _ in range(steps):
            await asyncio.sleep(0)
        await monitor.close()
        del monitor
        gc.collect()
        await asyncio.sleep(0)
        server.close()
        assert not told

    asyncio.run(scenario())
