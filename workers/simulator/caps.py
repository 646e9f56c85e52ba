"""What a call for embeddings may hold, and what is said of one that holds more, in OpenAI's words. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .request import InvalidRequest

if TYPE_CHECKING:
    from .options import SimulatorOptions
    from .request import EmbeddingRequest

__all__ = ["check_embedding"]


def check_embedding(request: EmbeddingRequest, options: SimulatorOptions, body: bytes) -> None:
    """Raises `InvalidRequest` for a call with too much in it, or with an input that the provider does not take."""
    inputs, tokens = len(request.input_tokens), request.prompt_tokens
    if options.max_inputs is not None and inputs > options.max_inputs:
        raise InvalidRequest(
            f"Invalid 'input': array too long. Expected an array with maximum length {options.max_inputs}, but got an "
            f"array with length {inputs} instead.",
            "input",
            code="array_above_max_length",
        )
    if options.max_input_tokens is not None and tokens > options.max_input_tokens:
        raise InvalidRequest(
            f"Requested {tokens} tokens, max {options.max_input_tokens} tokens per request",
            code="max_tokens_per_request",
        )
    longest = max(request.input_tokens)
    if options.max_tokens_per_input is not None and longest > options.max_tokens_per_input:
        raise InvalidRequest(
            f"This model's maximum context length is {options.max_tokens_per_input} tokens, however you requested "
            f"{longest} tokens ({longest} in your prompt; 0 for the completion). Please reduce your prompt; or "
            "completion length."
        )
    if options.poison is not None and options.poison.encode() in body:
        raise InvalidRequest("'$.input' is invalid. Please check the API reference.")
