"""The body of a chat request as the Messages API takes it. What has no counterpart there is refused by its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from .messages import conversation, refused
from .schema import constrainable

__all__ = ["DEFAULT_MAX_TOKENS", "messages_request"]

DEFAULT_MAX_TOKENS = 8_192
"""The Messages API wants `max_tokens`, and OpenAI's callers may leave it out."""

MIN_THINKING_TOKENS = 1_024

THINKING_TOKENS = {"minimal": 1_024, "low": 1_024, "medium": 2_048, "high": 4_096}
"""By `reasoning_effort`, for models that take a budget: LiteLLM's figures, so that callers who move find the same."""

_ADAPTIVE_SINCE = (4, 6)
"""From this generation on Claude thinks as much as an effort says, and from 4.7 on it refuses a budget
(platform.claude.com/docs/en/build-with-claude/extended-thinking)."""
_THINKS_UNASKED_SINCE = (5, 0)
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}

# claude-sonnet-4-6, claude-fable-5, claude-haiku-4-5-20251001, and the older claude-3-7-sonnet-20250219.
_GENERATION = re.compile(r"claude-(?:[a-z]+-)?(\d{1,2})(?:[-.](\d{1,2}))?(?![\d])", re.ASCII)

_TIERS = {"auto": "auto", "default": "standard_only", "standard_only": "standard_only"}

Fields = dict[str, Any]
Translation = Callable[[Any, Fields], None]


def messages_request(body: Mapping[str, Any], *, model: str) -> Fields:
    """A chat request's body as one for the Messages API. `model` is Anthropic's own name.

    The API's own fields, such as `thinking` or `top_k`, pass untouched. Raises `Unserved` (`bad_request`), which names
    the field, for what the API has no counterpart of; nothing is left out that would change the answer.
    """
    system, turns = conversation(body.get("messages"))
    request: Fields = {"model": model, "max_tokens": DEFAULT_MAX_TOKENS, "messages": turns}
    if system:
        request["system"] = system
    for name, value in body.items():
        if value is None or name in _READ_ELSEWHERE:
            continue
        if name in _TRANSLATIONS:
            _TRANSLATIONS[name](value, request)
        elif name in _NEUTRAL:
            _check_neutral(name, value)
        else:
            request[name] = value
    _limit_tokens(body, request)
    _permit_parallel_calls(body, request)
    _think(body, request)
    return request


_READ_ELSEWHERE = frozenset(
    {
        "model",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "parallel_tool_calls",
        "reasoning_effort",
        # The answer is delivered whole.
        "stream",
        "stream_options",
    }
)

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "modalities": (["text"],),
    "store": (False,),
    "audio": (),
    "prediction": (),
    "seed": (),
    "verbosity": (),
    "web_search_options": (),
    "moderation": (),
    "functions": (),
    "function_call": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
}
"""Fields of OpenAI's without a counterpart, with the values that mean as much as leaving them out."""

_INSTEAD = {
    "n": "submit the job several times",
    "functions": "use `tools`",
    "function_call": "use `tool_choice`",
    "prompt_cache_key": "mark what is to be cached with `cache_control`",
    "prompt_cache_options": "mark what is to be cached with `cache_control`",
    "prompt_cache_retention": "give `cache_control` a `ttl`",
    "web_search_options": "name Anthropic's own web search in `tools`",
    "verbosity": "say it in the prompt",
}


def _check_neutral(name: str, value: Any) -> None:
    # Python takes False for 0 and True for 1, and JSON does not.
    if not any(value == neutral and type(value) is type(neutral) for neutral in _NEUTRAL[name]):
        raise refused(name, f"Anthropic's API has no such option; {_INSTEAD.get(name, 'leave it out')}")


def _temperature(value: Any, request: Fields) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise refused("temperature", "Anthropic's API takes a number from 0 to 1")
    request["temperature"] = value


def _stop(value: Any, request: Fields) -> None:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop.strip() for stop in stops):
        raise refused("stop", "Anthropic's API takes texts that are more than white space")
    request["stop_sequences"] = stops


def _user(value: Any, request: Fields) -> None:
    request["metadata"] = {**request.get("metadata", {}), "user_id": value}


def _metadata(value: Any, request: Fields) -> None:
    if not isinstance(value, dict) or not value.keys() <= {"user_id"}:
        raise refused(
            "metadata", "Anthropic's API knows `user_id` alone; the job's own option `metadata` is kept by us"
        )
    request["metadata"] = {**request.get("metadata", {}), **value}


def _service_tier(value: Any, request: Fields) -> None:
    if not isinstance(value, str) or value not in _TIERS:
        raise refused("service_tier", f"Anthropic's API takes {', '.join(_TIERS)}")
    request["service_tier"] = _TIERS[value]


def _response_format(value: Any, request: Fields) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return
    schema = value.get("json_schema") if kind == "json_schema" else None
    if not isinstance(schema, dict) or not isinstance(schema.get("schema"), dict):
        raise refused("response_format", "Anthropic's API takes `json_schema` with a `schema`, or `text`")
    _output_config({"format": {"type": "json_schema", "schema": constrainable(schema["schema"])}}, request)


def _output_config(value: Any, request: Fields) -> None:
    if not isinstance(value, dict):
        raise refused("output_config", "must be an object")
    request["output_config"] = {**request.get("output_config", {}), **value}


def _tools(value: Any, request: Fields) -> None:
    if not isinstance(value, list):
        raise refused("tools", "must be a list")
    request["tools"] = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(value)]


def _tool(tool: Any, field: str) -> Fields:
    if not isinstance(tool, dict):
        raise refused(field, "must be an object")
    if tool.get("type") != "function":
        if isinstance(tool.get("name"), str) and "custom" not in tool:
            return tool  # Anthropic's own, such as its web search
        raise refused(field, "Anthropic's API takes tools of type `function` and its own")
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise refused(f"{field}.function", "must be an object with a `name`")
    translated: Fields = {"name": function["name"]}
    for name in ("description", "strict"):
        if function.get(name) is not None:
            translated[name] = function[name]
    translated["input_schema"] = function.get("parameters") or {"type": "object", "properties": {}}
    if marker := tool.get("cache_control") or function.get("cache_control"):
        translated["cache_control"] = marker
    return translated


_CHOICES = {"auto": "auto", "required": "any", "none": "none"}


def _tool_choice(value: Any, request: Fields) -> None:
    if isinstance(value, str) and value in _CHOICES:
        request["tool_choice"] = {"type": _CHOICES[value]}
        return
    if isinstance(value, dict):
        function = value.get("function")
        if value.get("type") == "function" and isinstance(function, dict) and isinstance(function.get("name"), str):
            request["tool_choice"] = {"type": "tool", "name": function["name"]}
            return
        if value.get("type") in ("auto", "any", "none", "tool"):
            request["tool_choice"] = dict(value)
            return
    raise refused("tool_choice", "Anthropic's API takes `auto`, `required`, `none` or one function's name")


_TRANSLATIONS: dict[str, Translation] = {
    "temperature": _temperature,
    "stop": _stop,
    "user": _user,
    "safety_identifier": _user,
    "metadata": _metadata,
    "service_tier": _service_tier,
    "response_format": _response_format,
    "output_config": _output_config,
    "tools": _tools,
    "tool_choice": _tool_choice,
}


def _limit_tokens(body: Mapping[str, Any], request: Fields) -> None:
    for name in ("max_completion_tokens", "max_tokens"):
        if (value := body.get(name)) is not None:
            if type(value) is not int or value < 1:
                raise refused(name, "must be a whole number of at least 1")
            request["max_tokens"] = value
            return


def _permit_parallel_calls(body: Mapping[str, Any], request: Fields) -> None:
    if body.get("parallel_tool_calls") is not False or not request.get("tools"):
        return
    choice = request.setdefault("tool_choice", {"type": "auto"})
    if choice["type"] != "none":
        choice["disable_parallel_tool_use"] = True


def _think(body: Mapping[str, Any], request: Fields) -> None:
    """`reasoning_effort`, in the way of the model's generation. The API's own `thinking` overrides it."""
    effort = body.get("reasoning_effort")
    if effort is None or "thinking" in request:
        return
    generation = _generation(request["model"])
    if effort == "none":
        if generation >= _THINKS_UNASKED_SINCE:
            request["thinking"] = {"type": "disabled"}
    elif generation >= _ADAPTIVE_SINCE:
        _think_adaptively(effort, request)
    else:
        _think_within_budget(effort, request, is_default_limit=_has_no_limit(body))


def _generation(model: str) -> tuple[int, int]:
    """(4, 6) of `claude-sonnet-4-6`. A name that shows none is taken to be of the present."""
    found = _GENERATION.search(model)
    return (int(found[1]), int(found[2] or 0)) if found else _THINKS_UNASKED_SINCE


def _has_no_limit(body: Mapping[str, Any]) -> bool:
    return body.get("max_tokens") is None and body.get("max_completion_tokens") is None


def _think_adaptively(effort: Any, request: Fields) -> None:
    if not isinstance(effort, str) or effort not in _EFFORTS:
        raise refused("reasoning_effort", f"Anthropic's API takes none, {', '.join(_EFFORTS)}")
    request["thinking"] = {"type": "adaptive"}
    request["output_config"] = {"effort": _EFFORTS[effort], **request.get("output_config", {})}


def _think_within_budget(effort: Any, request: Fields, *, is_default_limit: bool) -> None:
    if not isinstance(effort, str) or effort not in THINKING_TOKENS:
        raise refused("reasoning_effort", f"this model takes none, {', '.join(THINKING_TOKENS)}")
    tokens = THINKING_TOKENS[effort]
    if is_default_limit:
        request["max_tokens"] += tokens
    tokens = min(tokens, request["max_tokens"] - 1)
    if tokens < MIN_THINKING_TOKENS:
        raise refused("reasoning_effort", f"thinking takes {MIN_THINKING_TOKENS:,} tokens or more; raise max_tokens")
    request["thinking"] = {"type": "enabled", "budget_tokens": tokens}
