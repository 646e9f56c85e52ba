"""Tasks that run beside the limiters, and their end."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["stop"]

CANCEL_AGAIN_S = 0.1


async def stop(task: asyncio.Task[Any]) -> None:
    """Cancel it until it is over: redis-py has been seen to swallow a cancellation that met an error of its own."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_AGAIN_S)
