"""Anthropic's Messages API, for callers who speak OpenAI's chat completions.

codec.py      URL, headers, and what a codec owes the pipeline
request.py    the fields of a chat request, as Messages has them
schema.py     a JSON Schema, as its structured outputs take it
messages.py   the turns of the conversation: text, pictures, documents, tool calls and results, thinking
answer.py     a message that came back, as a chat completion
stream.py     one that comes in pieces

Sources: https://platform.claude.com/docs/en/api/messages, .../api/errors, .../api/rate-limits, .../api/versioning,
.../build-with-claude/{thinking,effort,structured-outputs,handling-stop-reasons}, and the types of Anthropic's Python
SDK 2.14, all as of November 2026.
"""

from __future__ import annotations

from .codec import AnthropicCodec

__all__ = ["AnthropicCodec"]
