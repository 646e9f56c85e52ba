"""Azure OpenAI: OpenAI's bodies at Azure's addresses.

Two forms of address, told apart by the provider's `base_url` (learn.microsoft.com/azure/foundry/openai/
api-version-lifecycle, as of November 2026):

- the v1 API, `https://NAME.openai.azure.com/openai/v1`: OpenAI's own paths, the deployment is the body's `model`;
- the classic one, `https://NAME.openai.azure.com`: the deployment is in the path, and `api-version` in the query. Only
  a response's path names none: its deployment is the body's `model` (API versions from 2025-03-01-preview on).
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from tasks.wire.kinds import KINDS

from .codec import Probe
from .openai import OpenAICodec

if TYPE_CHECKING:
    from pydantic import SecretStr

    from config.catalog import Model, Provider

    from ..prompt.job import PromptJob

__all__ = ["AzureCodec"]


class AzureCodec(OpenAICodec):
    """OpenAI's bodies and answers. A model's `upstream` is the name of its deployment.

    With `auth = "bearer"` the key's variable holds the token that Entra has given.
    """

    key_header = "api-key"

    def probe(self, provider: Provider, key: SecretStr | None) -> Probe:
        """See `Codec.probe`. Azure lists the models that it has, not the deployments."""
        path = "/models" if provider.is_azure_v1 else "/openai/models"
        url = provider.base_url + path + provider.query_string
        return Probe(url, {**provider.headers, **self._auth(provider, key)}, names_models=False)

    def _url(self, job: PromptJob, model: Model, provider: Provider) -> str:
        if provider.is_azure_v1:
            return super()._url(job, model, provider)
        if job.kind == "respond":
            return f"{provider.base_url}/openai{KINDS[job.kind].path}{provider.query_string}"
        # Quoted, because a job may choose the name.
        path = f"/openai/deployments/{quote(model.upstream, safe='')}{KINDS[job.kind].path}"
        return provider.base_url + path + provider.query_string
