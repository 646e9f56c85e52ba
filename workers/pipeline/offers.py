"""Which models this worker can call, and whether another worker can call those that this one can't.

A worker that lacks a model, or a key, fails jobs faster than its neighbours answer them, and so would get most of them.
The heartbeat announces what each worker can call, for each queue that the worker takes from (broker/lua/offer.lua).
What a worker can't call goes back to Redis while another announces it, and fails with its reason when nobody does.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tasks.wire import redis_keys
from tasks.wire.request import offered_as

from ..prompt.failure import Failure

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tasks.wire.kinds import Api

__all__ = ["AGAIN_S", "Offers", "OtherWorkers", "not_taken", "offers", "with_api"]

logger = logging.getLogger("promptmill.offers")

AGAIN_S: Final = 1.0
"""After this long a job that only other workers can do may be taken again."""

WITHDRAWN_S: Final = 60.0
MOST_WITHDRAWN_S: Final = 3_600.0
"""How long a provider that refused every key is not offered; doubled each time, so that workers whose keys are all
refused can't pass a job round among them for ever."""

ANSWER_TTL_S: Final = 0.25
MOST_ANSWERS: Final = 256
ASK_AGAIN_S: Final = 0.5


def with_api(model: str, api: Api) -> str:
    """The name under which a model is offered together with one of its provider's endpoints."""
    return f"{model}\n{api}"


class Offers:
    """The models that this process can call, by provider. Any thread may ask."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        """`now` gives seconds by a clock that nobody sets."""
        self._now = now
        self._lock = threading.Lock()
        self._models: Mapping[str, frozenset[str]] = {}
        self._withdrawn: dict[str, tuple[float, float]] = {}

    def announce(self, models: Mapping[str, Iterable[str]]) -> None:
        """Offer these models, each also `with_api`, by provider, in place of those before."""
        with self._lock:
            self._models = {provider: frozenset(aliases) for provider, aliases in models.items()}
            self._withdrawn = {}

    def withdraw(self, provider: str) -> None:
        """The provider has refused every key that this worker has: leave its jobs to other workers for a while."""
        with self._lock:
            until, pause_s = self._withdrawn.get(provider, (0.0, WITHDRAWN_S / 2))
            if self._now() >= until:
                pause_s = min(2 * pause_s, MOST_WITHDRAWN_S)
                self._withdrawn[provider] = self._now() + pause_s, pause_s

    def restore(self, provider: str) -> None:
        """The provider has taken a key."""
        if self._withdrawn:
            with self._lock:
                self._withdrawn.pop(provider, None)

    def is_withdrawn(self, provider: str) -> bool:
        """Whether the provider's jobs are left to other workers for now."""
        if not self._withdrawn:
            return False
        with self._lock:
            return self._withdrawn.get(provider, (0.0, 0.0))[0] > self._now()

    def now(self) -> frozenset[str]:
        """The aliases that this worker can call; `*` is any that the catalogue does not name, `PROVIDER/*` any of a
        provider's."""
        with self._lock:
            now = self._now()
            return frozenset[str]().union(
                *(
                    aliases
                    for provider, aliases in self._models.items()
                    if self._withdrawn.get(provider, (0.0, 0.0))[0] <= now
                )
            )


offers: Final = Offers()
"""This process's."""


class OtherWorkers:
    """Asks Redis which models other workers offer. Belongs to one event loop."""

    def __init__(
        self,
        redis: Redis,
        *,
        key_prefix: str = "",
        mine: Offers = offers,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._redis = redis
        self._key_prefix = key_prefix
        self._mine = mine
        self._sleep = sleep
        self._asking = asyncio.Lock()
        self._answers: dict[tuple[str, str], tuple[float, bool]] = {}

    async def offered(self, alias: str, *, queue: str) -> bool:
        """Whether another living worker can call this model, which may have its endpoint beside it (`with_api`). Waits
        for as long as Redis can't be asked."""
        # One at a time: the jobs of a model come in hundreds, and what one is told holds for the others.
        async with self._asking:
            until, answer = self._answers.get((queue, alias), (0.0, False))
            if time.monotonic() < until:
                return answer
            answer = await self._ask(alias, queue)
            if len(self._answers) >= MOST_ANSWERS:
                self._answers.clear()
            self._answers[queue, alias] = time.monotonic() + ANSWER_TTL_S, answer
            return answer

    async def _ask(self, alias: str, queue: str) -> bool:
        mine = self._mine.now()
        # What this worker announces itself proves nothing about others.
        model, *api = alias.partition("\n")
        asked = [name for each in offered_as(model) if (name := each + "".join(api)) not in mine]
        if not asked:
            return False
        key, is_away = self._key_prefix + redis_keys.offers(queue), False
        while True:
            try:
                async with self._redis.pipeline(transaction=False) as commands:
                    commands.time()
                    commands.zmscore(key, asked)
                    (seconds, microseconds), ends = await commands.execute()
            except (RedisError, OSError) as error:
                if not is_away:
                    logger.warning("Redis can't be asked who offers a model (%s); its jobs wait", type(error).__name__)
                is_away = True
                await self._sleep(ASK_AGAIN_S)
            else:
                now_ms = seconds * 1000 + microseconds // 1000
                return any(end is not None and end > now_ms for end in ends)


def not_taken() -> Failure:
    """The end of a job that this worker can't do, and of which it did not hear in time whether another can."""
    return Failure("expired", "the job's deadline passed before a worker that can call its model took it")
