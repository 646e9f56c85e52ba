"""Wait for a condition, never for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

__all__ = ["PATIENCE_S", "wait_until", "wait_until_async"]

PATIENCE_S = 60.0
"""Long enough for a loaded machine; a test that waits for something true takes milliseconds."""

LOOK_EVERY_S = 0.005


def wait_until(condition: Callable[[], Any], description: str, *, timeout_s: float = PATIENCE_S) -> Any:
    """The condition's value as soon as it is true. Raises AssertionError with the description."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s in vain: {description}")
        time.sleep(LOOK_EVERY_S)
    return value


async def wait_until_async(condition: Callable[[], Any], description: str, *, timeout_s: float = PATIENCE_S) -> Any:
    """As `wait_until`, while the loop runs. The condition may be a coroutine function."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s in vain: {description}")
        await asyncio.sleep(LOOK_EVERY_S)
