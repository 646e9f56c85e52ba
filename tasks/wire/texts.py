"""The text in a provider's answer, of whatever kind. Pure: the standard library alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from .kinds import JobKind

__all__ = ["answer_with", "response_text", "text_of"]

Body = dict[str, Any]


def text_of(kind: JobKind, body: Body) -> str | None:
    """The text of the answer's first choice, or of a response's messages; None where it has none."""
    read = _TEXTS.get(kind, _TEXTS["chat"])
    try:
        return read(body)
    except (LookupError, TypeError, AttributeError):
        return None


def response_text(body: Body) -> str:
    """What OpenAI's own clients call `output_text`: all text in the messages of a response."""
    return "".join(
        part["text"]
        for item in body["output"]
        if isinstance(item, dict) and item.get("type") == "message"
        for part in item.get("content") or ()
        if isinstance(part, dict) and part.get("type") == "output_text" and isinstance(part.get("text"), str)
    )


def answer_with(kind: JobKind, text: str, *, id: str, model: str) -> Body:  # noqa: A002 - the answer's own name for it
    """The least answer of this kind that has the text. A kind whose answers have none gets that of a chat."""
    match kind:
        case "respond":
            part = {"type": "output_text", "text": text, "annotations": []}
            item = {"type": "message", "id": f"msg_{id}", "status": "completed", "role": "assistant", "content": [part]}
            return {"id": id, "object": "response", "status": "completed", "model": model, "output": [item]}
        case "complete":
            choice: Body = {"index": 0, "text": text, "finish_reason": "stop"}
            return {"id": id, "object": "text_completion", "model": model, "choices": [choice]}
        case _:
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            return {"id": id, "object": "chat.completion", "model": model, "choices": [choice]}


def _str(value: Any) -> str | None:
    return value if isinstance(value, str) else None


_TEXTS: Final[Mapping[JobKind, Callable[[Body], str | None]]] = {
    "chat": lambda body: _str(body["choices"][0]["message"]["content"]),
    "respond": lambda body: response_text(body) or None,
    "complete": lambda body: _str(body["choices"][0]["text"]),
}
