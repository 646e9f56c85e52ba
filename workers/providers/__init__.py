"""Providers' wire formats, one codec for each kind that the catalogue may name. Nothing here does I/O."""

from __future__ import annotations

from .anthropic import AnthropicCodec
from .azure import AzureCodec
from .codec import Answer, AnswerSize, Assembly, Codec, Probe, ProviderRequest, RawResponse, Stage
from .openai import OpenAICodec

__all__ = ["CODECS", "Answer", "AnswerSize", "Assembly", "Codec", "Probe", "ProviderRequest", "RawResponse", "Stage"]

CODECS: dict[str, Codec] = {"openai": OpenAICodec(), "azure": AzureCodec(), "anthropic": AnthropicCodec()}
"""By `Provider.kind`."""
