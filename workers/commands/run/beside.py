"""Waiting for one thing while watching others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

__all__ = ["beside", "either"]

T = TypeVar("T")


async def beside(main: Coroutine[Any, Any, T], *others: Coroutine[Any, Any, None]) -> T:
    """What `main` returns. The first error of any of them ends all, and is raised as it is.

    A TaskGroup would wrap the error in a group, and wait for the others to end by themselves.
    """
    result = asyncio.ensure_future(main)
    pending: set[asyncio.Future[Any]] = {result, *map(asyncio.ensure_future, others)}
    everything = tuple(pending)
    try:
        while not result.done():
            ended, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for future in ended:
                future.result()
        return result.result()
    finally:
        for future in everything:
            future.cancel()
        await asyncio.gather(*everything, return_exceptions=True)


async def either(*things: Awaitable[Any]) -> None:
    """Return when the first of them is done; the others are cancelled."""
    futures = [asyncio.ensure_future(thing) for thing in things]
    try:
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)
