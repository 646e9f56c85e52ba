"""The turns of a conversation, from OpenAI's messages to Anthropic's."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from typing import Any

from ...prompt.failure import Unserved

__all__ = ["OWN_CONTENT", "conversation", "refused"]

OWN_CONTENT = "content"
"""Where `provider_fields` of an assistant's message keeps the blocks that OpenAI's message has no place for."""

Block = dict[str, Any]

_OWN_BLOCKS = frozenset(
    {
        "image",
        "document",
        "search_result",
        "container_upload",
        "tool_use",
        "tool_result",
        "thinking",
        "redacted_thinking",
        "server_tool_use",
    }
)
"""Anthropic's own content blocks, which pass as they are."""

_PICTURES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})


def refused(field: str, reason: str) -> Unserved:
    """A field that can't be translated. `reason` holds no value of the job's."""
    return Unserved("bad_request", f"`{field}`: {reason}")


def conversation(messages: Any) -> tuple[str | list[Block], list[Block]]:
    """The system prompt and the turns. Raises `Unserved` (`bad_request`), which names the message and its field.

    System messages come first, wherever they stand: Anthropic's own OpenAI-compatible endpoint does the same. The
    results of several tool calls are one turn.
    """
    if not isinstance(messages, list):
        raise refused("messages", "must be a list")
    system: list[Block] = []
    turns: list[Block] = []
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role in ("system", "developer"):  # no set: any JSON value may stand there
            system += _blocks(message, field)
        elif role == "user":
            turns.append({"role": "user", "content": _content(message, field)})
        elif role == "assistant":
            turns.append({"role": "assistant", "content": _said(message, field)})
        elif role == "tool":
            _add_result(turns, _result(message, field))
        else:
            raise refused(f"{field}.role", "Anthropic's API knows system, developer, user, assistant and tool")
    if not turns:
        raise refused("messages", "Anthropic's API wants a message besides the system's")
    return _shortened(system), turns


def _shortened(blocks: list[Block]) -> str | list[Block]:
    """A text alone needs no block around it."""
    if len(blocks) == 1 and blocks[0].keys() == {"type", "text"}:
        return str(blocks[0]["text"])
    return blocks


def _content(message: Block, field: str) -> str | list[Block]:
    return _shortened(_blocks(message, field))


def _blocks(message: Block, field: str) -> list[Block]:
    """The content of any message. Empty texts are left out: the API refuses them."""
    if message.get("name") is not None:
        raise refused(f"{field}.name", "Anthropic's API has no names of speakers; put it into the text")
    content = message.get("content")
    if isinstance(content, str):
        blocks = [_text(content)] if content else []
    elif isinstance(content, list):
        blocks = [_block(part, f"{field}.content[{index}]") for index, part in enumerate(content)]
    elif content is None:
        blocks = []
    else:
        raise refused(f"{field}.content", "must be a text or a list of parts")
    if blocks and (marker := message.get("cache_control")):
        blocks[-1] = {**blocks[-1], "cache_control": marker}
    return [block for block in blocks if block.get("text") != ""]


def _text(text: str) -> Block:
    return {"type": "text", "text": text}


def _block(part: Any, field: str) -> Block:
    kind = part.get("type") if isinstance(part, dict) else None
    match kind:
        case "text" if isinstance(part.get("text"), str):
            return dict(part)
        case "refusal" if isinstance(part.get("refusal"), str):
            return _text(part["refusal"])
        case "image_url":
            block = {"type": "image", "source": _picture(part.get("image_url"), f"{field}.image_url")}
        case "file":
            block = _document(part.get("file"), f"{field}.file")
        case str() if kind in _OWN_BLOCKS:
            return dict(part)
        case "input_audio":
            raise refused(field, "Anthropic's API takes no audio")
        case _:
            raise refused(field, "Anthropic's API takes texts, pictures (image_url) and files")
    if marker := part.get("cache_control"):
        block["cache_control"] = marker
    return block


def _picture(given: Any, field: str) -> Block:
    url = given.get("url") if isinstance(given, dict) else given
    if not isinstance(url, str):
        raise refused(field, "must be an object with a `url`")
    if url.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    media_type, data = _data_url(url, field)
    if media_type not in _PICTURES:
        raise refused(field, f"Anthropic's API takes {', '.join(sorted(_PICTURES))}")
    return {"type": "base64", "media_type": media_type, "data": data}


def _document(given: Any, field: str) -> Block:
    if not isinstance(given, dict):
        raise refused(field, "must be an object with `file_data` or `file_id`")
    block: Block = {"type": "document"}
    if isinstance(file_id := given.get("file_id"), str):
        block["source"] = {"type": "file", "file_id": file_id}
    elif isinstance(data := given.get("file_data"), str):
        block["source"] = _file(data, f"{field}.file_data")
    else:
        raise refused(field, "must be an object with `file_data` or `file_id`")
    if isinstance(name := given.get("filename"), str):
        block["title"] = name
    return block


def _file(url: str, field: str) -> Block:
    if url.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    media_type, data = _data_url(url, field)
    if media_type == "application/pdf":
        return {"type": "base64", "media_type": media_type, "data": data}
    if media_type == "text/plain":
        return {"type": "text", "media_type": media_type, "data": _decoded(data, field)}
    raise refused(field, "Anthropic's API takes application/pdf and text/plain")


def _data_url(url: str, field: str) -> tuple[str, str]:
    """Media type and base64 of `data:image/png;base64,...`."""
    head, comma, data = url.partition(",")
    media_type, *parameters = head.removeprefix("data:").split(";")
    if not comma or not head.startswith("data:") or "base64" not in parameters:
        raise refused(field, "must be an https:// URL, or a data: URL in base64")
    return media_type.strip().lower(), data


def _decoded(data: str, field: str) -> str:
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise refused(field, "must be UTF-8 text in base64") from None


def _said(message: Block, field: str) -> str | list[Block]:
    """An assistant's message. As it came from Anthropic, if it did: signed thinking must come back unchanged."""
    own = message.get("provider_fields")
    if isinstance(own, dict) and isinstance(blocks := own.get(OWN_CONTENT), list) and blocks:
        return blocks
    for name in ("audio", "function_call"):
        if message.get(name) is not None:
            raise refused(f"{field}.{name}", "Anthropic's API has no such thing")
    blocks = _blocks(message, field)
    if isinstance(refusal := message.get("refusal"), str) and refusal:
        blocks.append(_text(refusal))
    return _shortened([*blocks, *_calls(message.get("tool_calls") or [], f"{field}.tool_calls")])


def _calls(calls: Any, field: str) -> Iterator[Block]:
    if not isinstance(calls, list):
        raise refused(field, "must be a list")
    for index, call in enumerate(calls):
        place = f"{field}[{index}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(call.get("id"), str):
            raise refused(place, "must be a function call with an `id`")
        yield {
            "type": "tool_use",
            "id": call["id"],
            "name": function.get("name"),
            "input": _arguments(function.get("arguments"), f"{place}.function.arguments"),
        }


def _arguments(text: Any, field: str) -> Block:
    try:
        arguments = json.loads(text) if text else {}
    except (TypeError, ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise refused(field, "must be a JSON object, as text")
    return arguments


def _result(message: Block, field: str) -> Block:
    if not isinstance(call_id := message.get("tool_call_id"), str):
        raise refused(f"{field}.tool_call_id", "must name the call that it answers")
    marker = message.get("cache_control")
    # `name`, the function's, says nothing that the call's id does not.
    content = _blocks({"content": message.get("content")}, field)
    return {
        "type": "tool_result",
        "tool_use_id": call_id,
        "content": _shortened(content) or "",
        **({"cache_control": marker} if marker else {}),
        **({"is_error": True} if message.get("is_error") is True else {}),
    }


def _add_result(turns: list[Block], result: Block) -> None:
    content = turns[-1]["content"] if turns and turns[-1]["role"] == "user" else None
    if isinstance(content, list) and content and _is_result(content[-1]):
        content.append(result)
    else:
        turns.append({"role": "user", "content": [result]})


def _is_result(block: Block) -> bool:
    return block.get("type") == "tool_result"
