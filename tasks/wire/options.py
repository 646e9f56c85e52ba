"""The options of a job, each defined once: its check, its default, its meaning, and who takes it.

`submit`, the workers, `promptmill run` and docs/reference/jobs.md all read `OPTIONS`. A new option is one entry here,
plus the code that acts on it. Pure: the standard library alone.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from .vocabulary import PRIORITIES

__all__ = ["MAX_REPAIRS", "MAX_SHOWN", "NOT_BUILT", "OPTIONS", "Option", "Reader", "names_read_by", "problem"]

Reader = Literal["client", "worker", "run"]
"""Who takes an option: `submit`; a worker, in `promptmill` of a Celery message; `run`, in `promptmill` of a row."""

Check = Callable[[Any], str | None]
"""From a value to what is wrong with it, as in "must be a name"; None if nothing is. Never repeats the value."""

MAX_DELAY_S: Final = 366 * 86_400.0
"""A later `eta` is a mistake in the unit, far more often than a plan."""
MAX_SECONDS: Final = 1e15
"""Times beyond this lose their fractions, and sums with them their sense."""
MAX_REPAIRS: Final = 10
MAX_SHOWN: Final = 50
"""Characters of an unknown name that are compared with the known ones, which takes time by length, and shown."""

_ID: Final = re.compile(r"[!-~]{1,200}")
_EVERYBODY: Final[frozenset[Reader]] = frozenset(get_args(Reader))


@dataclass(frozen=True, slots=True)
class Option:
    """One option of ours. `doc` is its line in the docs; `default` is what holds when it is None or left out."""

    name: str
    check: Check
    doc: str
    default: Any = None
    default_text: str = "none"
    read_by: frozenset[Reader] = _EVERYBODY


def _id(value: Any) -> str | None:
    # It goes into Redis keys and an HTTP header.
    if isinstance(value, str) and _ID.fullmatch(value):
        return None
    return "must be 1 to 200 visible ASCII characters without spaces, as in 'invoice-2026-0017'"


def _priority(value: Any) -> str | None:
    if isinstance(value, str) and value in PRIORITIES:
        return None
    *others, last = map(repr, PRIORITIES)
    return f"must be {', '.join(others)} or {last}"


def _seconds(*, least: float = 0.0, above: bool = False, most: float = MAX_SECONDS) -> Check:
    bounds = f"must be {'more than ' if above else ''}{least:g}{'' if above else ' or more'} seconds, at most {most:g}"

    def check(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            return f"must be a number of seconds, not {_type(value)}"
        return bounds if value < least or value > most or (above and value == least) else None

    return check


def _is_finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)  # an int may be too large for a float


def _tenant(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "must be a name, as in 'acme'"


def _attempts(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return None
    return "must be a whole number, 1 or more"


def _schema(value: Any) -> str | None:
    return None if isinstance(value, dict) and value else f"must be a JSON Schema, an object, not {_type(value)}"


def _repair(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_REPAIRS:
        return None
    return f"must be a whole number from 0 to {MAX_REPAIRS}"


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else f"must be true or false, not {_type(value)}"


def _metadata(value: Any) -> str | None:
    """`value` is known to be JSON."""
    found = [value]
    for item in found:
        if isinstance(item, dict):
            found += item.values()
        elif isinstance(item, list | tuple):
            found += item
        elif isinstance(item, int) and not -(2**63) <= item < 2**64:
            return "holds an integer of more than 64 bits, which a result can't carry; write it as a string"
    return None


def _type(value: object) -> str:
    return f"a {type(value).__name__}"


OPTIONS: Final[dict[str, Option]] = {
    option.name: option
    for option in (
        Option(
            "id",
            _id,
            "The job's id, 1 to 200 visible ASCII characters. Submitting an id again changes nothing and returns the "
            "same job; another tenant's id is refused (`IdTaken`).",
            default_text="a new UUID",
            read_by=frozenset({"client"}),
        ),
        Option(
            "priority",
            _priority,
            "`interactive`, `normal` or `bulk`: who goes first, in the queue and in the wait for a limit.",
            default="normal",
            default_text='`"normal"`',
        ),
        Option(
            "deadline_s",
            _seconds(above=True),
            "Without an answer this many seconds after its submission, the job expires.",
        ),
        Option(
            "delay_s",
            _seconds(most=MAX_DELAY_S),
            "The job is not started before this many seconds after its submission.",
            default=0.0,
            default_text="`0`",
            read_by=frozenset({"client"}),
        ),
        Option(
            "tenant",
            _tenant,
            "Whose job it is: tenants whose jobs wait for a limit take turns, and an id belongs to the tenant that "
            "submitted it.",
        ),
        Option(
            "metadata",
            _metadata,
            "Any JSON; comes back in the result. Integers have at most 64 bits.",
        ),
        Option(
            "max_attempts",
            _attempts,
            "Calls to the provider, at most, the first included. The workers' settings cap it.",
            default_text="`PROMPTMILL_RETRY__MAX_ATTEMPTS`",
        ),
        Option(
            "repeat_timeouts",
            _flag,
            "Whether a call that was sent and timed out, and so may be paid for, is made again.",
            default_text="the catalogue's",
        ),
        Option(
            "schema",
            _schema,
            "The JSON Schema that the answer has to fit; it goes into `response_format`. See "
            "[structured answers](../guides/structured-answers.md).",
        ),
        Option(
            "repair",
            _repair,
            "Further calls, at most, for an answer that does not fit its schema, 0 to 10. They are none of "
            "`max_attempts`.",
            default=0,
            default_text="`0`",
        ),
        Option(
            "submitted_at",
            _seconds(),
            "When it was submitted, in seconds since 1970 by Redis's clock: our client's stamp. Without it "
            "`deadline_s` counts from when a worker reads the job.",
            read_by=frozenset({"worker"}),
        ),
    )
}

NOT_BUILT: Final[dict[str, str]] = {
    "cache_ttl_s": "answers are not cached yet, so it would change nothing; leave it out",
    "fallbacks": "there are no fallbacks yet, so no other model would be asked; leave it out, and submit a job that "
    "has failed again with another model",
}
"""Names that will be options one day, and until then are refused, with the reason."""


def names_read_by(reader: Reader) -> list[str]:
    """The options that this reader takes, in the order of the docs."""
    return [option.name for option in OPTIONS.values() if reader in option.read_by]


def problem(name: str, value: Any, *, reader: Reader) -> str | None:
    """Why this reader refuses the option, or None. `value` is JSON and not None: None is an option not given."""
    if (option := OPTIONS.get(name)) is not None and reader in option.read_by:
        return option.check(value)
    return NOT_BUILT.get(name) or _unknown(name, names_read_by(reader))


def _unknown(name: str, known: Iterable[str]) -> str:
    # Silently dropping a misspelt `deadline_s` would cost money; refusing it costs a line of text.
    near = difflib.get_close_matches(name[:MAX_SHOWN], known, n=1)
    return "there is no such option; " + (f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}")
