"""The script that stores outcomes, and what it waits for where results are in another Redis than the messages."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError, ResponseError

from tasks.redis.connection import Unreplicated
from tasks.redis.script import Script

if TYPE_CHECKING:
    from redis import Redis

__all__ = ["StoreScript"]

STORE = Script.read(Path(__file__).with_name("lua"), "store")

REPLICA_MS = 2_000
"""How long a replica may take to say that it has results, before they are written again."""

SETTING_TTL_S = 30.0


class StoreScript:
    """store.lua at one Redis. Blocking; raises redis's errors."""

    def __init__(self, redis: Redis, *, may_be_replicated: bool) -> None:
        """`may_be_replicated`: wait for a replica where Redis takes writes only while one follows it.

        What the broker's own Redis has lost its workers see there (verify.lua). For results in another Redis it is too
        late then: the queue has forgotten the messages, which alone could bring them back.
        """
        self._redis = redis
        self._may_be_replicated = may_be_replicated
        self._script = redis.register_script(STORE.text)
        self._asked_at = -math.inf
        self._is_replica_wanted = False
        """As of `_asked_at` (monotonic clock, s)."""

    def __call__(self, keys: list[str], args: list[Any]) -> list[int]:
        """Numbers of the entries that were refused (store.lua). Raises Unreplicated where a replica must have them."""
        if not self._may_be_replicated or not self._wants_replica():
            refused: list[int] = self._script(keys=keys, args=args)
            return refused
        try:
            return self._run_replicated(keys, args)
        except NoScriptError:
            self._redis.script_load(STORE.text)
            return self._run_replicated(keys, args)

    def _run_replicated(self, keys: list[str], args: list[Any]) -> list[int]:
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.evalsha(STORE.sha, len(keys), *keys, *args)
            pipe.wait(1, REPLICA_MS)
            # Not raised by the pipeline, which would write the command into the error's text.
            replies = pipe.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        refused, replicas = replies
        if not replicas:
            self._asked_at = -math.inf  # somebody may have changed the setting
            raise Unreplicated
        return list(refused)

    def _wants_replica(self) -> bool:
        if time.monotonic() - self._asked_at > SETTING_TTL_S:
            try:
                self._is_replica_wanted = "min_slaves_good_slaves" in self._redis.info("replication")
            except ResponseError:
                self._is_replica_wanted = False  # a user who may not ask
            self._asked_at = time.monotonic()
        return self._is_replica_wanted
