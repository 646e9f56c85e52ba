"""What a line of the input asks for. Pure: no file, no queue, no catalogue.

The forms of a row, in the order in which they are looked for:

1. `body` is an object: an OpenAI batch line (`custom_id`, `method`, `url`, `body`).
2. `messages` is there: the body of a chat request.
3. `--field NAME` was given and the row has that field: its text is the prompt.
4. `input` is there, as a list, or as a text for a model with `embed` in its name: the body of an embedding request.
   A text for another model may be a request of the Responses API as well, and is refused.
5. `instruction` and `input` both hold a text, and no other usual name does but `text`, where that repeats the
   instruction: together they are the prompt. Alpaca's `text` is the whole training example, its answer included.
6. Exactly one of the usual names `prompt`, `question`, `text`, `input`, `instruction` holds a text: that is the
   prompt.

`custom_id` and `promptmill` (our own options) may stand in any of them; what else a request holds goes to the
provider untouched, what else a row with a prompt holds is left out.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, NoReturn

from tasks.wire.json_text import is_unicode
from tasks.wire.kinds import KINDS, JobKind, kind_of_url
from tasks.wire.options import problem
from tasks.wire.schema import described_schema, schema_conflict, states_format, with_schema

from .input_file import MAX_LINE_BYTES, Line

__all__ = ["DEFAULT_MODEL", "PROMPT_NAMES", "BadRow", "Row", "RowReader"]

DEFAULT_MODEL = "gpt-4o-mini"
"""Answers rows that name no model when `--model` is not given either."""

PROMPT_NAMES = ("prompt", "question", "text", "input", "instruction")
INSTRUCTED = {"instruction", "input"}

DEFAULT_PRIORITY = "bulk"
"""A file of prompts must not delay people who wait for an answer on the same Redis."""

SHOWN_NAMES = 8
SHOWN_NAME_LENGTH = 40

_SUBJECTS = frozenset(kind.field for kind in KINDS.values())
RESPONSES_URL = f"/v1{KINDS['respond'].path}"
_URLS = ", ".join(f"/v1{kind.path}" for kind in KINDS.values())


@dataclass(frozen=True, slots=True)
class Row:
    """A row that can be sent. `field` names the field that was taken for the prompt, if one was.

    `digest` is 16 hex digits over everything that decides the answer: a finished row answers for a line as long
    as both have the same.
    """

    line: int
    custom_id: str
    kind: JobKind
    body: dict[str, Any] = dataclasses.field(repr=False)
    options: dict[str, Any] = dataclasses.field(repr=False)
    digest: str
    size_bytes: int
    field: str | None = None

    @property
    def model(self) -> str:
        return str(self.body["model"])


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can't be sent, and why. `code` is one of `tasks.errors.ERROR_CODES`."""

    line: int
    custom_id: str
    reason: str
    code: Literal["bad_request", "not_found", "auth", "permission"] = "bad_request"


class _Unusable(Exception):
    """Why a row can't be sent; the text never repeats the row's values."""


@dataclass(frozen=True, slots=True)
class RowReader:
    """Reads rows as the options of a run say. `model` overrides the row's own model; `default_model` replaces
    a missing one. `schema` is for chats that name none, and `repair` for those that have one and say nothing."""

    model: str | None = None
    default_model: str | None = DEFAULT_MODEL
    field: str | None = None
    simulated: bool = False
    schema: dict[str, Any] | None = dataclasses.field(default=None, repr=False)
    repair: int = 0

    def read(self, line: Line) -> Row | BadRow:
        custom_id = f"row-{line.number}"
        try:
            data = _object(line)
            custom_id = _custom_id(data, default=custom_id)
            return self._row(line, data, custom_id)
        except _Unusable as problem:
            return BadRow(line.number, custom_id, str(problem))

    def _row(self, line: Line, data: dict[str, Any], custom_id: str) -> Row:
        options = _options(data.pop("promptmill", None))
        kind, body, prompt_field = self._request(data)
        body = self._with_schema(kind, body, options)
        body = {"model": self._model(body), **{name: body[name] for name in body if name != "model"}}
        return Row(
            line=line.number,
            custom_id=custom_id,
            kind=kind,
            body=body,
            options=options,
            digest=_digest(kind, body, simulated=self.simulated),
            size_bytes=line.size_bytes,
            field=prompt_field,
        )

    def _with_schema(self, kind: JobKind, body: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        """The body with the row's schema, or the run's, in the provider's words: a part of what decides the answer."""
        schema = options.pop("schema", None)
        if schema is None and KINDS[kind].schema_in and not states_format(kind, body):
            schema = self.schema
        has_repair = bool(options.get("repair"))
        if conflict := schema_conflict(kind, body, has_schema=schema is not None, has_repair=has_repair):
            raise _Unusable("its `promptmill.{}`: {}".format(*conflict))
        if schema is not None:
            body = with_schema(kind, body, schema)
        if self.repair and described_schema(kind, body) is not None:
            options.setdefault("repair", self.repair)
        return body

    def _request(self, data: dict[str, Any]) -> tuple[JobKind, dict[str, Any], str | None]:
        data = {name: value for name, value in data.items() if value is not None or name not in _SUBJECTS}
        if isinstance(data.get("body"), dict):
            return *self._batch_line(data, data["body"]), None
        if data.get("url") == RESPONSES_URL:
            raise _Unusable("its `url` is the Responses API's, and it has no `body`; put the request into `body`")
        if "messages" in data:
            return "chat", data, None
        if self.field is not None and self.field in data:
            return self._prompt(data, self.field)
        if _is_instructed(data) and not self._embeds(data):
            return self._instructed(data)
        if isinstance(data.get("input"), list) or ("input" in data and (self._embeds(data) or _is_bare(data))):
            self._check_embedding(data)
            return "embed", data, None
        return self._prompt(data, self._prompt_field(data))

    def _batch_line(self, data: dict[str, Any], body: dict[str, Any]) -> tuple[JobKind, dict[str, Any]]:
        if (data.get("method") or "POST") != "POST":
            raise _Unusable("its `method` is not POST")
        url = data.get("url")
        kind = _kind_of_url(url) if url is not None else _kind_of_body(body)
        if KINDS[kind].field not in body:
            raise _Unusable(f"its `body` has no `{KINDS[kind].field}`")
        if conflict := KINDS[kind].conflict(body):
            raise _Unusable("its `{}`: {}".format(*conflict))
        if url is None and kind == "embed":
            self._check_embedding(body)
        return kind, body

    def _embeds(self, body: dict[str, Any]) -> bool:
        return "embed" in str(self.model or body.get("model")).lower()

    def _check_embedding(self, body: dict[str, Any]) -> None:
        """Raise for a request of the Responses API, which has an `input` too: to embed it would be paid for nothing."""
        texts = body["input"]
        if isinstance(texts, list) and any(isinstance(item, dict) for item in texts):
            raise _Unusable("its `input` holds messages, as in the Responses API; name its `url`, or send `messages`")
        if isinstance(texts, str) and not self._embeds(body):
            raise _Unusable(
                "its `input` is a text to embed, or a prompt of the Responses API; to embed it make it a list, "
                '"input": ["..."], and to have it answered use `messages`, or say --field input'
            )

    def _instructed(self, data: dict[str, Any]) -> tuple[JobKind, dict[str, Any], str]:
        """What fine-tuning sets hold: `input` is what the instruction speaks of, and may be empty."""
        parts = [data[name] for name in ("instruction", "input") if data[name].strip()]
        return self._prompt({**data, "instruction": "\n\n".join(parts)}, "instruction")

    def _prompt_field(self, data: dict[str, Any]) -> str:
        if self.field is not None:
            raise _Unusable(f"it has no field {self.field!r}, which --field names; it has {_names(data)}")
        found = [name for name in PROMPT_NAMES if name in _texts(data)]
        if not found:
            raise _Unusable(
                "it has no prompt: neither `messages` nor `input` nor a text under a usual name; "
                f"say with --field NAME which field is the prompt; it has {_names(data)}"
            )
        if set(found) > INSTRUCTED:
            others = ", ".join(name for name in found if name not in INSTRUCTED)
            raise _Unusable(
                f"its `instruction` and `input` belong together, and it has {others} as well; "
                "leave out what is not the prompt, or say with --field NAME which field alone is the prompt"
            )
        if len(found) > 1:
            raise _Unusable(f"it has several possible prompts ({', '.join(found)}); say which with --field NAME")
        return found[0]

    def _prompt(self, data: dict[str, Any], name: str) -> tuple[JobKind, dict[str, Any], str]:
        text = data[name]
        if not isinstance(text, str):
            raise _Unusable(f"its field {name!r} holds {_kind_of(text)}; a prompt is a text")
        if not text.strip():
            raise _Unusable(f"its field {name!r} is empty; a prompt is a text")
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
        if "model" in data:
            body["model"] = data["model"]
        return "chat", body, name

    def _model(self, body: dict[str, Any]) -> str:
        own = body.get("model")
        own = (self.model or self.default_model) if own is None else own
        if own is None:
            raise _Unusable("it names no model, and no server but OpenAI's has a usual one; give --model")
        if not isinstance(own, str) or not own:
            raise _Unusable(f"its `model` holds {_kind_of(own)}; a model is a name")
        return self.model or own


def _object(line: Line) -> dict[str, Any]:
    data = _json(line)
    if not isinstance(data, dict):
        raise _Unusable(f"it is {_kind_of(data)}; each row is a JSON object")
    return data


def _json(line: Line) -> Any:
    if line.text is None:
        raise _Unusable(f"it is longer than {MAX_LINE_BYTES // 1024 // 1024} MiB")
    try:
        # The standard library's parser, because orjson turns integers beyond 64 bits into floats.
        return json.loads(line.text.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _Unusable(f"it is not UTF-8: the byte at column {error.start + 1} is invalid") from None
    except json.JSONDecodeError as error:
        raise _Unusable(f"it is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise _Unusable("it is nested too deeply") from None
    except ValueError:
        raise _Unusable("it is not JSON that can be sent: a number has too many digits") from None


def _refuse_constant(name: str) -> NoReturn:
    raise _Unusable(f"it is not JSON: {name} is no JSON number")


def _custom_id(data: dict[str, Any], *, default: str) -> str:
    custom_id = data.pop("custom_id", None)
    if custom_id is None:
        return default
    if isinstance(custom_id, bool) or not isinstance(custom_id, str | int) or custom_id == "":
        raise _Unusable(f"its `custom_id` holds {_kind_of(custom_id)}; it must be a text")
    return _encodable(str(custom_id))


def _encodable(custom_id: str) -> str:
    if not is_unicode(custom_id):
        raise _Unusable("its `custom_id` holds a lone surrogate, which is no character")
    return custom_id


def _options(given: Any) -> dict[str, Any]:
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise _Unusable(f"its `promptmill` holds {_kind_of(given)}; it must be an object of options")
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if refusal := problem(name, value, reader="run"):
            raise _Unusable(f"its `promptmill.{_shown(name)}`: {refusal}")
    return {"priority": DEFAULT_PRIORITY, **given}


def _texts(data: dict[str, Any]) -> set[str]:
    return {name for name in PROMPT_NAMES if isinstance(data.get(name), str)}


def _is_instructed(data: dict[str, Any]) -> bool:
    texts = _texts(data)
    if texts == {*INSTRUCTED, "text"}:
        return bool(data["instruction"].strip()) and data["instruction"].strip() in data["text"]
    return texts == INSTRUCTED


def _is_bare(data: dict[str, Any]) -> bool:
    """Whether it names its model and has no prompt but its `input`."""
    return bool(data.get("model")) and not _texts(data) - {"input"}


def _kind_of_url(url: Any) -> JobKind:
    kind = kind_of_url(url) if isinstance(url, str) else None
    if kind is None:
        raise _Unusable(f"its `url` is none of {_URLS}")
    return kind


def _kind_of_body(body: dict[str, Any]) -> JobKind:
    # The other kinds' prompts have names of the same sort: only a `url` tells them.
    for kind in ("chat", "embed"):
        if KINDS[kind].field in body:
            return kind
    raise _Unusable("its `body` has neither `messages` nor `input`; another kind of request needs its `url`")


def _digest(kind: JobKind, body: dict[str, Any], *, simulated: bool) -> str:
    text = json.dumps([kind, body, simulated], separators=(",", ":"))
    return sha256(text.encode()).hexdigest()[:16]


def _kind_of(value: Any) -> str:
    names = {bool: "true or false", str: "a text", list: "a list", dict: "an object", type(None): "null"}
    if value == "":
        return "an empty text"
    return names.get(type(value), "a number")


def _names(data: dict[str, Any]) -> str:
    names = [f"'{_shown(name)}'" for name in list(data)[:SHOWN_NAMES]]
    more = ", ..." if len(data) > SHOWN_NAMES else ""
    return ", ".join(names) + more if names else "no fields"


def _shown(name: str) -> str:
    return ascii(name[:SHOWN_NAME_LENGTH])[1:-1]
