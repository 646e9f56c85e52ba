"""The options of a job, each defined once: its check, its default, its meaning, and who takes it.

`submit`, the workers, `promptmill run` and docs/reference/jobs.md all read `OPTIONS`. A new option is one entry here,
plus the code that acts on it. Pure: the standard library alone.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from .kinds import KINDS
from .vocabulary import PRIORITIES, TOO_LONG, TRIGGERS

__all__ = [
    "MAX_NAME_CHARACTERS",
    "MAX_REPAIRS",
    "MAX_SHOWN",
    "ONLY_EMBEDDINGS",
    "OPTIONS",
    "Option",
    "Reader",
    "names_read_by",
    "problem",
]

Reader = Literal["client", "worker", "run"]
"""Who takes an option: `submit`; a worker, in `promptmill` of a Celery message; `run`, in `promptmill` of a row."""

Check = Callable[[Any], str | None]
"""From a value to what is wrong with it, as in "must be a name"; None if nothing is. Never repeats the value."""

MAX_DELAY_S: Final = 366 * 86_400.0
"""A later `eta` is a mistake in the unit, far more often than a plan."""
MAX_CACHE_S: Final = 366 * 86_400.0
MAX_SECONDS: Final = 1e15
"""Times beyond this lose their fractions, and sums with them their sense."""
MAX_REPAIRS: Final = 10
MAX_SHOWN: Final = 50
"""Characters of an unknown name that are compared with the known ones, which takes time by length, and shown."""

MAX_FALLBACKS: Final = 20
ONLY_EMBEDDINGS: Final = "is for embeddings; other prompts are never shortened"
MAX_NAME_CHARACTERS: Final = 200
"""Of a model's name, as in the catalogue: names are compared with all that are known when one is not. Of a tag too."""

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


def _one_of(words: Collection[str]) -> Check:
    *others, last = map(repr, words)
    refusal = f"must be {', '.join(others)} or {last}"

    def check(value: Any) -> str | None:
        return None if isinstance(value, str) and value in words else refusal

    return check


def _seconds(*, least: float = 0.0, above: bool = False, most: float = MAX_SECONDS) -> Check:
    bounds = f"must be {'more than ' if above else ''}{least:g}{'' if above else ' or more'} seconds, at most {most:g}"

    def check(value: Any) -> str | None:
        if type(value) is not float and (isinstance(value, bool) or not isinstance(value, int | float)):
            return f"must be a number of seconds, not {_type(value)}"
        if least < value <= most or (value == least and not above):
            return None
        return bounds if _is_finite(value) else f"must be a number of seconds, not {_type(value)}"

    return check


def _is_finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)  # an int may be too large for a float


def _tenant(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "must be a name, as in 'acme'"


def _whole_number(refusal: str, *, least: int, most: int | None = None) -> Check:
    def check(value: Any) -> str | None:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return None if is_whole and value >= least and (most is None or value <= most) else refusal

    return check


def _schema(value: Any) -> str | None:
    return None if isinstance(value, dict) and value else f"must be a JSON Schema, an object, not {_type(value)}"


def _fallbacks(value: Any) -> str | None:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        return "must be a list of models' names, as in ['gpt-4o-mini']; an empty one forbids the catalogue's"
    if len(value) > MAX_FALLBACKS or any(not name.strip() or len(name) > MAX_NAME_CHARACTERS for name in value):
        return f"must be at most {MAX_FALLBACKS} names of 1 to {MAX_NAME_CHARACTERS} characters"
    return "must not name the same model twice" if len(set(value)) < len(value) else None


def _triggers(value: Any) -> str | None:
    if isinstance(value, list | tuple) and all(isinstance(name, str) and name in TRIGGERS for name in value):
        return None
    return f"must be a list of {', '.join(map(repr, TRIGGERS[:-1]))} and {TRIGGERS[-1]!r}, or of some of them"


def _tag(value: Any) -> str | None:
    if isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARACTERS:
        return None
    return f"must be a text of 1 to {MAX_NAME_CHARACTERS} characters, as in 'hard'"


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else f"must be true or false, not {_type(value)}"


def _vectors(value: Any) -> str | None:
    return None if value == "base64" else "must be 'base64', or left out for numbers"


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
            "kind",
            _one_of(KINDS),
            "The kind of work: `chat`, `embed`, `respond`, `complete` or `moderate`. `queue.respond()`, `complete()` "
            "and `moderate()` say it for you; rows of `submit_many` name it. See [endpoints](../guides/endpoints.md).",
            default_text="a chat with `messages`, an embedding with `input`",
            read_by=frozenset({"client"}),
        ),
        Option(
            "priority",
            _one_of(PRIORITIES),
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
            _whole_number("must be a whole number, 1 or more", least=1),
            "Calls to providers, at most, of all models together, the first included. The workers' settings cap it.",
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
            "The JSON Schema that the answer has to fit; it goes into `response_format`, of a response into "
            "`text.format`. See [structured answers](../guides/structured-answers.md).",
        ),
        Option(
            "repair",
            _whole_number(f"must be a whole number from 0 to {MAX_REPAIRS}", least=0, most=MAX_REPAIRS),
            "Further calls, at most, for an answer that does not fit its schema, 0 to 10. They are none of "
            "`max_attempts`.",
            default=0,
            default_text="`0`",
        ),
        Option(
            "fallbacks",
            _fallbacks,
            "Models to ask in turn where the job's own can't answer. An empty list: none.",
            default_text="the route's or the catalogue's",
        ),
        Option(
            "fallback_on",
            _triggers,
            "What leads to the next model beyond what does so by itself: `rate_limited` (a turn that is far away is "
            "not waited for), `content_filter`, `auth`, `permission`.",
            default_text="the catalogue's",
        ),
        Option(
            "tag",
            _tag,
            "A word for a route's rules, such as `hard`.",
        ),
        Option(
            "cache_ttl_s",
            _seconds(most=MAX_CACHE_S),
            "How long its answer may serve equal prompts, and how old an answer may be that serves it. `0`: it neither "
            "reads nor fills the cache.",
            default_text="`PROMPTMILL_CACHE__TTL_S`",
        ),
        Option(
            "sample",
            _whole_number("must be a whole number, 0 or more", least=0, most=2**63 - 1),
            "Which of several answers to one prompt it wants: each number has an answer of its own in the cache.",
            default_text="`0`",
        ),
        Option(
            "too_long",
            _one_of(TOO_LONG),
            "What becomes of inputs longer than the model takes (`max_tokens_per_input`): `reject`, `truncate`, or "
            "`split` (the mean of the parts' vectors); said in the result. See "
            "[embeddings](../guides/embeddings.md).",
            default="reject",
            default_text='`"reject"`',
        ),
        Option(
            "stream",
            _flag,
            "Whether somebody is going to read the answer as it comes (`job.stream()`): the worker asks the provider "
            "for a stream from the first call on. See [streaming](../guides/streaming.md).",
            default=False,
            default_text="`false`",
            read_by=frozenset({"client", "worker"}),
        ),
        Option(
            "vectors",
            _vectors,
            "`base64`: whoever reads the result knows packed vectors, as our client does, which says so by itself.",
            default_text="numbers",
            read_by=frozenset({"worker"}),
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

_CHECKS: Final[dict[Reader, dict[str, Check]]] = {
    reader: {option.name: option.check for option in OPTIONS.values() if reader in option.read_by}
    for reader in _EVERYBODY
}


def names_read_by(reader: Reader) -> list[str]:
    """The options that this reader takes, in the order of the docs."""
    return [option.name for option in OPTIONS.values() if reader in option.read_by]


def problem(name: str, value: Any, *, reader: Reader) -> str | None:
    """Why this reader refuses the option, or None. `value` is JSON and not None: None is an option not given."""
    if (check := _CHECKS[reader].get(name)) is not None:
        return check(value)
    return _unknown(name, names_read_by(reader))


def _unknown(name: str, known: Iterable[str]) -> str:
    # Silently dropping a misspelt `deadline_s` would cost money; refusing it costs a line of text.
    near = difflib.get_close_matches(name[:MAX_SHOWN], known, n=1)
    return "there is no such option; " + (f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}")
