"""Which prompts are equal: the same request to the same model of the same provider, for the same tenant.

What a provider would see as another request has another digest: 1, 1.0 and true differ, and so does each field, known
to us or not. Fields of an object have no order, with exceptions: models write the properties of a schema in the order
in which it names them.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable

    from config.catalog import Model, Provider

    from ..prompt.job import PromptJob
    from ..providers import Codec

__all__ = ["Digests", "tenant_digest"]

FORMAT: Final = 1
"""Of what is hashed and of what is stored. Another number finds nothing of what was stored before."""

ORDERED: Final = frozenset(
    {
        "response_format",
        "tools",
        "functions",
        "text",
        "guided_json",
        "structured_outputs",
        "output_config",
        "output_format",
        "schema",
    }
)
"""Fields of a body whose objects have an order."""

MOST_SCOPES: Final = 1_024
TENANT_DIGITS: Final = 16
NOBODY: Final = "-"
_SEPARATOR: Final = b"\0"
"""No JSON text holds it."""
_FIRST_SAMPLE: Final = b"0" + _SEPARATOR
"""What most bodies stand behind."""
_PATIENT: Final = _SEPARATOR + b"flex"


class Asked(Protocol):
    """The model that is asked, and the name that led to it."""

    @property
    def alias(self) -> str: ...

    @property
    def model(self) -> Model: ...

    @property
    def provider(self) -> Provider: ...

    @property
    def codec(self) -> Codec: ...


class Digests:
    """Makes the digests of one process. What jobs of a model have in common is hashed once."""

    def __init__(self, *, may_wait: Callable[[PromptJob], bool] = lambda _: False) -> None:
        """Jobs that `may_wait` for a flex tier are equal to such jobs alone: nobody in a hurry waits for those."""
        self._may_wait = may_wait
        self._scopes: dict[tuple[str, str], Any] = {}

    def of(self, job: PromptJob, asked: Asked) -> str:
        """`<of the tenant>:<of the request>`, in hexadecimal digits. On any thread."""
        scope = self._scopes.get((job.kind, asked.alias))
        if scope is None:
            scope = self._new_scope(job, asked)
        options, hashed = job.options, scope.copy()
        tenant = options.tenant
        if tenant or options.sample:
            hashed.update(f"{options.sample} {tenant}\0".encode() if tenant else b"%d\0" % options.sample)
            hashed.update(_canonical(job.body))
        else:
            hashed.update(_FIRST_SAMPLE + _canonical(job.body))
        if asked.model.flex and self._may_wait(job):
            hashed.update(_PATIENT)
        return f"{tenant_digest(tenant) if tenant else NOBODY}:{hashed.hexdigest()}"

    def _new_scope(self, job: PromptJob, asked: Asked) -> Any:
        if len(self._scopes) >= MOST_SCOPES:
            self._scopes.clear()
        scope = self._scopes[job.kind, asked.alias] = _scope(job, asked.model, asked.provider, asked.codec)
        return scope


def tenant_digest(tenant: str) -> str:
    """What the digests of a tenant's prompts begin with. "" is nobody's."""
    return hashlib.sha256(tenant.encode()).hexdigest()[:TENANT_DIGITS] if tenant else NOBODY


def _scope(job: PromptJob, model: Model, provider: Provider, codec: Codec) -> Any:
    same = [
        *(FORMAT, job.kind, provider.name, model.upstream),
        *(provider.base_url, provider.query_string, provider.headers),
        *(provider.kind, codec.version, model.structured_outputs or provider.structured_outputs),
    ]
    return hashlib.sha256(_dumps(same, orjson.OPT_SORT_KEYS) + _SEPARATOR)


def _canonical(body: dict[str, Any]) -> bytes:
    """The request as one text. The model's alias is ours; the scope has the provider's own name of it."""
    rest = body.copy()
    rest.pop("model", None)
    if ORDERED.isdisjoint(rest):
        try:
            return orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)
        except TypeError:
            return _by_json(rest, orjson.OPT_SORT_KEYS)
    texts = [_dumps([name, rest.pop(name)], 0) for name in sorted(ORDERED.intersection(rest))]
    return _SEPARATOR.join([_dumps(rest, orjson.OPT_SORT_KEYS), *texts])


def _dumps(value: Any, option: int) -> bytes:
    try:
        return orjson.dumps(value, option=option)
    except TypeError:
        return _by_json(value, option)


def _by_json(value: Any, option: int) -> bytes:
    """For what orjson can't write: integers of more than 64 bits, halves of surrogate pairs."""
    return json.dumps(value, sort_keys=bool(option), separators=(",", ":")).encode()
