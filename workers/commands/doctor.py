"""`promptmill doctor`: looks at everything that a worker needs, and says what to mend."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import aiohttp
import typer
from rich.console import Console
from rich.table import Table

from config.api_keys import KeyProblem, MissingKey, key_problem, read_keys
from config.catalog import Catalog, CatalogError, load_catalog
from config.settings import SettingsError, get_settings

from ..celery.flower import ADVICE, OPEN
from ..checks import Finding, Level, check_file_limit, check_settings_redis
from ..http.session import check_proxies, tls_context
from ..pipeline.packing.tokens import tokenizers_of
from ..providers import CODECS
from .common import JsonOption
from .ladders import show_ladders

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import SecretStr

    from config.catalog import Provider

__all__ = ["doctor", "examine"]

PROBE_TIMEOUT_S = 10.0
MOST_NAMES = 5
MOST_OF_A_PAGE = 65_536
"""Bytes; where the page says what it is, the title, comes first."""

_STYLES: dict[Level, str] = {"ok": "green", "warning": "yellow", "refused": "red"}
_WORDS: dict[Level, str] = {"ok": "ok", "warning": "look", "refused": "FAILS"}


def doctor(
    as_json: JsonOption = False,
    ladder: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Show instead what a job of this model or route passes through in a worker."),
    ] = None,
) -> None:
    """Check Redis, the file limit, Flower, the catalogue, and each provider's keys and models.

    Asks each provider for its list of models, in the way of its kind, which costs nothing. Exits 1 if something would
    keep jobs from being done.
    """
    if ladder is not None:
        show_ladders(ladder, as_json=as_json)
        return
    findings = asyncio.run(examine())
    healthy = all(finding.level != "refused" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"healthy": healthy, "findings": [finding.to_dict() for finding in findings]}))
    else:
        _show(findings)
    raise typer.Exit(0 if healthy else 1)


def _show(findings: Iterable[Finding]) -> None:
    table = Table("", "what", "finding", box=None, pad_edge=False)
    for finding in findings:
        style = _STYLES[finding.level]
        table.add_row(f"[{style}]{_WORDS[finding.level]}[/]", _plain(finding.subject), _plain(finding.text))
    Console().print(table)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


async def examine() -> list[Finding]:
    """All findings. Raises nothing: what is wrong is a finding."""
    try:
        settings = get_settings()
    except SettingsError as error:
        return [Finding("refused", "settings", str(error))]
    findings = [check_file_limit(settings.concurrency)]
    # A worker waits for a Redis that is away; whoever asks a doctor wants to know.
    findings += await asyncio.to_thread(check_settings_redis, when_away="refused")
    findings.append(await _examine_flower(settings.flower_url))
    try:
        catalog = load_catalog(settings.catalog)
    except CatalogError as error:
        return [*findings, Finding("refused", "catalogue", str(error))]
    routes = f", {len(catalog.routes)} routes" if catalog.routes else ""
    text = f"{len(catalog.providers)} providers, {len(catalog.models)} models{routes}"
    findings += [Finding("ok", "catalogue", text), *examine_chains(catalog), *examine_tokenizers(catalog)]
    return findings + await _examine_providers(catalog)


def examine_chains(catalog: Catalog) -> list[Finding]:
    """Which routes and fallbacks lead to models that have no key here, so that they are passed over."""
    findings = []
    for name, route in catalog.routes.items():
        findings += _without_keys(catalog, f"route {name}", route.models())
    for name, model in catalog.models.items():
        findings += _without_keys(catalog, f"fallbacks of {name}", model.fallbacks)
    return findings


def examine_tokenizers(catalog: Catalog) -> list[Finding]:
    try:
        found = tokenizers_of(catalog)
    except CatalogError as error:
        return [Finding("refused", "tokenizers", str(error))]
    return [Finding("ok", "tokenizers", f"{len(found)} can be read")] if found else []


def _without_keys(catalog: Catalog, subject: str, names: Iterable[str]) -> list[Finding]:
    names = list(names)
    missing = [name for name in names if key_problem(catalog.provider(catalog.model(name)))]
    if not missing:
        return []
    if missing == names:
        return [Finding("warning", subject, f"none of its models has a key here: {_some(missing)}")]
    return [Finding("warning", subject, f"no key for {_some(missing)}: jobs go on to the others")]


async def _examine_flower(flower_url: str) -> Finding:
    """Ask for a page as a stranger would. A password in the URL is not used, and not shown."""
    parts = urlsplit(flower_url)
    url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{url}/workers", allow_redirects=False) as reply,
        ):
            page = await reply.content.read(MOST_OF_A_PAGE)
    except aiohttp.ClientSSLError as error:
        return Finding("warning", "Flower", f"{url} can't be asked ({type(error).__name__}). Check its certificate.")
    except (aiohttp.ClientError, TimeoutError):
        return Finding("ok", "Flower", f"none at {url}")
    if reply.status != 200 or b"flower" not in page.lower():
        return Finding("ok", "Flower", f"{url} lets no stranger in, or is something else (status {reply.status})")
    level: Level = "warning" if get_settings().allow_open_flower else "refused"
    return Finding(level, "Flower", f"{url} answers everybody. {OPEN} {ADVICE}")


async def _examine_providers(catalog: Catalog) -> list[Finding]:
    timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
    http = get_settings().http
    try:
        check_proxies(http)
    except ValueError as error:
        return [Finding("refused", "proxy", str(error))]
    try:
        tls = tls_context(http)
    except ValueError as error:
        return [Finding("refused", "certificates", str(error))]
    async with aiohttp.ClientSession(
        timeout=timeout, connector=aiohttp.TCPConnector(ssl=tls), proxy=http.proxy, trust_env=http.trust_env
    ) as session:
        unused = _unused(catalog)
        used = [provider for name, provider in catalog.providers.items() if name not in unused]
        found = await asyncio.gather(*(_examine_provider(catalog, provider, session) for provider in used))
    findings = [finding for group in found for finding in group] + _not_asked(unused)
    if not any(finding.level == "ok" for finding in findings):
        findings.append(Finding("refused", "providers", "not one of them can be called: every job would fail"))
    return findings


def _unused(catalog: Catalog) -> list[str]:
    return [name for name, provider in catalog.providers.items() if _is_unused(catalog, provider)]


def _is_unused(catalog: Catalog, provider: Provider) -> bool:
    """Whether it is one of the presets' addresses, without a key and without a model of its own."""
    if provider.any_model or any(model.provider == provider.name for model in catalog.models.values()):
        return False
    return isinstance(key_problem(provider), MissingKey)


def _not_asked(names: Sequence[str]) -> list[Finding]:
    if not names:
        return []
    text = f"no key for {', '.join(names)}: a model called PROVIDER/MODEL needs one, others don't"
    return [Finding("warning", "other providers", text)]


async def _examine_provider(catalog: Catalog, provider: Provider, session: aiohttp.ClientSession) -> list[Finding]:
    subject = f"provider {provider.name}"
    try:
        keys: list[SecretStr] = read_keys(provider)
    except MissingKey as problem:
        return [Finding("warning", subject, str(problem))]
    except KeyProblem as problem:
        return [Finding("refused", subject, str(problem))]
    probes = await asyncio.gather(*(_probe(provider, name, key, session) for name, key in _named(provider, keys)))
    return [probe.finding for probe in probes] + _missing_models(catalog, provider, probes)


def _named(provider: Provider, keys: list[SecretStr]) -> list[tuple[str, SecretStr | None]]:
    named: list[tuple[str, SecretStr | None]] = list(zip(provider.api_keys, keys, strict=True))
    return named or [("no key", None)]


@dataclass(frozen=True, slots=True)
class _Probe:
    finding: Finding
    models: frozenset[str] = frozenset()


async def _probe(provider: Provider, name: str, key: SecretStr | None, session: aiohttp.ClientSession) -> _Probe:
    subject = f"provider {provider.name}, {name}"
    asked = CODECS[provider.kind].probe(provider, key)
    try:
        async with session.get(asked.url, headers=asked.headers, allow_redirects=False) as reply:
            body: Any = await reply.json(content_type=None) if reply.status == 200 else None
            return _judge(subject, reply.status, body, names_models=asked.names_models)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        advice = "Check the base_url, DNS, proxy and certificates."
        return _Probe(
            Finding("refused", subject, f"{provider.base_url} can't be asked ({type(error).__name__}). {advice}")
        )


def _judge(subject: str, status: int, body: Any, *, names_models: bool) -> _Probe:
    if status in {401, 403}:
        return _Probe(Finding("refused", subject, f"the provider refuses this key ({status}). Put a valid one there."))
    if status != 200:
        text = f"GET /models answers {status}; jobs may work all the same, if this provider has no such list"
        return _Probe(Finding("warning", subject, text))
    rows = body.get("data") if isinstance(body, dict) else None
    names = frozenset(str(row["id"]) for row in rows or () if isinstance(row, dict) and "id" in row)
    finding = Finding("ok", subject, f"it answers, with {len(names)} models")
    return _Probe(finding, names if names_models else frozenset())


def _missing_models(catalog: Catalog, provider: Provider, probes: list[_Probe]) -> list[Finding]:
    listed = frozenset().union(*(probe.models for probe in probes))
    missing = sorted(
        model.upstream
        for model in catalog.models.values()
        if model.provider == provider.name and listed and model.upstream not in listed
    )
    if not missing:
        return []
    return [Finding("warning", f"provider {provider.name}", f"its list of models does not name {_some(missing)}")]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
