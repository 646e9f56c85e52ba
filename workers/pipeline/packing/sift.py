"""The inputs for which a call of many fails: found by halves, so that the others are answered.

Only what a provider says of the request is looked into. A rate limit, an outage, a key or a model that it does not know
meets all alike.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

from .caps import is_about_the_call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...prompt.failure import Failure
    from ...providers import Answer
    from ..trip import Trip
    from .member import Item

__all__ = ["Asks", "Refused", "sift"]

_OF_AN_INPUT: Final = frozenset({"bad_request", "content_filter", "too_large"})
_OTHER_FIELD: Final = re.compile(r'"param": ?"(?!\$?\.?input)\w+')
"""The provider names another field than the inputs."""

NAMED_AMONG: Final = 32
"""Of so many inputs of one job the one to blame is found. That takes further calls, which are paid for, and the job
fails all the same; of more, the text tells the range."""

FRUITLESS_ROUNDS: Final = 3
"""Where so many inputs were found and nothing was answered, it is the request that is refused, whatever is in it."""


class Refused(Exception):
    """A call for some of the inputs has failed, and this was its trip."""

    def __init__(self, failure: Failure, trip: Trip) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.trip = trip


class Asks(Protocol):
    """Makes calls for some of the inputs, and knows what to do with what comes of them."""

    async def ask(self, items: Sequence[Item]) -> tuple[Answer, Trip]: ...

    def deliver(self, items: Sequence[Item], answer: Answer, made: Trip) -> None: ...

    def fail(self, items: Sequence[Item], failure: Failure, made: Trip) -> None: ...

    def fits(self, items: Sequence[Item]) -> bool:
        """Whether one call takes as many, as far as is known."""

    def learn(self, failure: Failure, items: Sequence[Item]) -> None:
        """A call of more was too large, one of these was not."""


async def sift(pack: Asks, items: Sequence[Item], failure: Failure, made: Trip) -> None:
    """Each of the inputs is answered, or its job has failed. `made`: the call for all of them, which has failed."""
    if len(items) > 1 and failure.code == "too_large" and is_about_the_call(failure):
        await _halve(pack, items, failure)
    elif _is_of_an_input(failure) and _is_worth_it(items):
        await _Search(pack).run(items, failure, made)
    else:
        pack.fail(items, failure, made)


def _is_of_an_input(failure: Failure) -> bool:
    if failure.code not in _OF_AN_INPUT or failure.http_status is None or failure.retryable:
        return False
    return _OTHER_FIELD.search(failure.provider_body or "") is None


def _is_worth_it(items: Sequence[Item]) -> bool:
    """Whether to look for the input: others are to be answered, or few calls name it."""
    return _jobs(items) > 1 or 1 < len(items) <= NAMED_AMONG


async def _halve(pack: Asks, items: Sequence[Item], failure: Failure) -> None:
    """The call was too large. The halves that are not teach how large one may be."""
    middle = (len(items) + 1) // 2
    taken = 0
    for half in (_wanted(items[:middle]), _wanted(items[middle:])):
        if len(half) > 1 and not pack.fits(half):
            await _halve(pack, half, failure)
            continue
        if not half:
            continue
        try:
            answer, trip = await pack.ask(half)
        except Refused as refused:
            await sift(pack, half, refused.failure, refused.trip)
        else:
            pack.deliver(half, answer, trip)
            taken += 1
    if taken == 2:
        pack.learn(failure, items[:middle])


class _Search:
    """Finds each input for which a call fails, in about log2(n) + 2 calls for one of n.

    Of the suspects one half is asked for. If it is answered, the other half is to blame; if not, the other half goes to
    those that are asked for at the end, all together.
    """

    def __init__(self, pack: Asks) -> None:
        self._pack = pack
        self._later: list[Item] = []
        self._has_answer = False

    async def run(self, items: Sequence[Item], failure: Failure, made: Trip) -> None:
        suspects: Sequence[Item] = items
        rounds = 0
        while suspects:
            await self._narrow(suspects, failure, made)
            rounds += 1
            suspects, self._later = _wanted(self._later), []
            if not suspects:
                return
            try:
                answer, trip = await self._pack.ask(suspects)
            except Refused as refused:
                failure, made = refused.failure, refused.trip
                is_fruitless = rounds >= FRUITLESS_ROUNDS and not self._has_answer
                if is_fruitless or not _is_of_an_input(failure):
                    self._pack.fail(suspects, failure, made)
                    return
            else:
                self._pack.deliver(suspects, answer, trip)
                return

    async def _narrow(self, suspects: Sequence[Item], failure: Failure, made: Trip) -> None:
        """Down to one input, or to those of one job."""
        pack, fitting, was_asked = self._pack, suspects[: len(suspects) // 2], True
        while _is_worth_it(suspects := _wanted(suspects)):
            half, rest = suspects[: len(suspects) // 2], suspects[len(suspects) // 2 :]
            try:
                answer, trip = await pack.ask(half)
            except Refused as refused:
                self._later += rest
                suspects, failure, made, was_asked = half, refused.failure, refused.trip, True
                if not _is_of_an_input(failure):
                    break
            else:
                pack.deliver(half, answer, trip)
                self._has_answer = True
                suspects, fitting, was_asked = rest, half, False
        if not suspects:
            return
        if not was_asked:  # that the others are not to blame is no proof
            try:
                answer, trip = await pack.ask(suspects)
            except Refused as refused:
                failure, made = refused.failure, refused.trip
            else:
                pack.deliver(suspects, answer, trip)
                if failure.code == "too_large":
                    pack.learn(failure, fitting)
                return
        pack.fail(suspects, failure, made)


def _wanted(items: Sequence[Item]) -> Sequence[Item]:
    """Without those whose job has ended meanwhile: it was cancelled, or another input of it has failed."""
    return [item for item in items if item[0].failure is None and not item[0].done.done()]


def _jobs(items: Sequence[Item]) -> int:
    return len({id(member) for member, _ in items})
