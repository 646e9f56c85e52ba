"""Azure OpenAI: OpenAI's bodies at Azure's addresses.

Two forms of address, told apart by the provider's `base_url` (learn.microsoft.com/azure/foundry/openai/
api-version-lifecycle, as of November 2026):

- the v1 API, `https://NAME.openai.azure.com/openai/v1`: OpenAI's own paths, the deployment is the body's `model`;
- the classic one, `https://NAME.openai.azure.com`: the deployment is in the path, and `api-version` in the query.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from .codec import Probe, ProviderRequest
from .openai import PATHS, OpenAICodec, bearer, headers

if TYPE_CHECKING:
    from pydantic import SecretStr

    from config.catalog import Model, Provider

    from ..prompt.job import PromptJob

__all__ = ["AzureCodec"]


class AzureCodec(OpenAICodec):
    """OpenAI's bodies and answers. A model's `upstream` is the name of its deployment."""

    def request(self, job: PromptJob, *, model: Model, provider: Provider, key: SecretStr | None) -> ProviderRequest:
        """See `Codec.request`."""
        request = super().request(job, model=model, provider=provider, key=None)
        request.headers = headers(job, provider) | _auth(provider, key)
        if not provider.is_azure_v1:
            # Quoted, because a job may choose the name.
            path = f"/openai/deployments/{quote(model.upstream, safe='')}{PATHS[job.kind]}"
            request.url = provider.base_url + path + provider.query_string
        return request

    def probe(self, provider: Provider, key: SecretStr | None) -> Probe:
        """See `Codec.probe`. Azure lists the models that it has, not the deployments."""
        path = "/models" if provider.is_azure_v1 else "/openai/models"
        url = provider.base_url + path + provider.query_string
        return Probe(url, {**provider.headers, **_auth(provider, key)}, names_models=False)


def _auth(provider: Provider, key: SecretStr | None) -> dict[str, str]:
    """`api-key`, or the token that Entra has given, which the key's variable holds then."""
    if key is None or provider.auth == "bearer":
        return bearer(key)
    return {"api-key": key.get_secret_value()}
