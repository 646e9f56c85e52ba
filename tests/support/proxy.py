"""A TCP proxy that misbehaves as told: the link between a worker and its Redis."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, Literal, TypeVar

__all__ = ["Fault", "Proxy"]

T = TypeVar("T")

Fault = Literal["none", "refuse", "black_hole", "hold_messages", "slow"]
SLOW_S = 0.05
MESSAGE_BYTES = 700
"""No answer without a message in it is so long."""

CHUNK_BYTES = 65_536


class Proxy:
    """Listens on a loopback port and passes bytes on to another, until told otherwise. Runs in a thread of its own.

    - `refuse`: connections are refused, and those there are reset.
    - `black_hole`: no byte passes, on old connections and new ones, and none of them is closed (a half-open link).
      When it ends, what was held back on the way is lost, as on a link whose peer has forgotten it: those connections
      are reset.
    - `hold_messages`: the server hears everything; an answer of the size of a message is held back, and all behind it.
    - `slow`: each piece takes 50 ms.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._fault: Fault = "none"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter | None]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self._server: asyncio.Server | None = None
        self._call(self._listen())

    def set(self, fault: Fault) -> None:
        """Begin a fault, or end it with "none"."""
        self._call(self._set(fault))

    def reset(self) -> None:
        """Reset all connections that there are."""
        self._call(self._reset())

    def move(self, target_port: int) -> None:
        """Lead to another server from now on, as an address that a failover moves. Connections are reset."""
        self._target_port = target_port
        self.reset()

    def close(self) -> None:
        """Stop. Connections are reset."""
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _stop_listening(self) -> None:
        """A connection that asyncio has accepted, and for which its server is closed too early, is never closed."""
        if self._server is None:
            return
        for sock in self._server.sockets:
            self._loop.remove_reader(sock.fileno())
        for _ in range(3):
            await asyncio.sleep(0)
        self._server.close()

    async def _set(self, fault: Fault) -> None:
        before, self._fault = self._fault, fault
        if before == "refuse":
            await self._listen()
        if fault == "refuse":
            await self._stop_listening()
        if fault == "refuse" or before == "black_hole":
            await self._reset()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _reset(self) -> None:
        pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for writer in pair:
                if writer is not None:
                    _reset(writer)

    async def _close(self) -> None:
        await self._stop_listening()
        await self._reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reset()
        for _ in range(3):  # transports close in the loop's next turns
            await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._fault == "black_hole":
                self._pairs.add((writer, None))
                await self._until_passable("black_hole")
                return
            try:
                server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            except OSError:
                _reset(writer)
                return
            self._pairs.add((writer, server_writer))
            await asyncio.gather(
                self._pump(reader, server_writer),
                self._pump(server_reader, writer, holds_messages=True),
            )
        except asyncio.CancelledError:
            _reset(writer)  # the proxy closes; a stream's task that ends cancelled would be reported as an error
        finally:
            self._tasks.discard(task)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, holds_messages: bool = False
    ) -> None:
        try:
            while data := await reader.read(CHUNK_BYTES):
                if self._fault == "slow":
                    await asyncio.sleep(SLOW_S)
                if holds_messages and len(data) >= MESSAGE_BYTES:
                    await self._until_passable("hold_messages")
                await self._until_passable("black_hole")
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        await self._until_passable("black_hole")
        if not writer.is_closing():
            writer.close()

    async def _until_passable(self, fault: Fault) -> None:
        while self._fault == fault:
            await self._changed.wait()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, so that the other side has an error and not an end."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
