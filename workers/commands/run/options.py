"""What a run was asked to do."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from tasks.redis.address import Address

from .errors import UnusableInput
from .processes.own_server import OwnServer
from .processes.simulation import Simulation

__all__ = ["RunOptions"]

OTHER_FORMATS = frozenset({".csv", ".tsv", ".parquet", ".xlsx", ".xls", ".gz", ".zst", ".zip"})
"""Endings of which people expect more than we write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The command line of `promptmill run`, checked as far as that needs no file.

    `concurrency` is per worker process, None for the setting's; `redis` None means an embedded one, and
    `simulation` None the catalogue's providers. `base_url` stands in place of the catalogue, with the key that
    `api_key_env` names, if any. `schema` is the file of a JSON Schema that answers have to fit, `repair` the further
    calls that each may cost. Raises `UnusableInput`.
    """

    input: Path
    output: Path
    model: str | None = None
    field: str | None = None
    limit: int | None = None
    workers: int = 2
    concurrency: int | None = None
    redis: str | None = dataclasses.field(default=None, repr=False)
    simulation: Simulation | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    schema: Path | None = None
    repair: int = 0

    def __post_init__(self) -> None:
        if str(self.input) == "-":
            raise UnusableInput(
                "Standard input can't be the input: a run that was interrupted reads its input again. "
                "Save it to a file first."
            )
        _check_output(self.output)
        if self.redis is not None:
            _check_redis(self.redis)
        if self.workers == 0 and self.redis is None:
            raise UnusableInput(
                "--workers 0 uses workers that run already: name their Redis with --redis, or let this run start "
                "some with --workers 2."
            )
        if self.workers == 0 and self.simulation is not None:
            raise UnusableInput(
                "--simulate needs workers of its own, because those that run already have their own catalogue: "
                "leave out --workers 0."
            )
        if self.simulation is not None:
            self.simulation.check()
        self._check_own_server()

    def _check_own_server(self) -> None:
        if self.base_url is None and self.api_key_env is not None:
            raise UnusableInput("--api-key-env names the key of the server that --base-url names. Add --base-url.")
        if self.base_url is not None and self.simulation is not None:
            raise UnusableInput("--simulate and --base-url each say where all prompts go: leave one of them out.")
        if self.base_url is not None and self.workers == 0:
            raise UnusableInput(
                "--base-url needs workers of its own, because those that run already have their own catalogue: "
                "leave out --workers 0."
            )
        if self.own_server is not None:
            self.own_server.catalog()

    @property
    def own_server(self) -> OwnServer | None:
        """The server that `base_url` names."""
        return None if self.base_url is None else OwnServer(self.base_url, self.api_key_env)

    def services_text(self) -> str:
        """What the run is about to start, for people who wait for it."""
        parts = [
            "Redis" if self.redis is None else "",
            "a simulated provider" if self.simulation is not None else "",
            f"{self.workers} worker{'s' if self.workers != 1 else ''}" if self.workers else "",
        ]
        started = ", ".join(filter(None, parts))
        return f"Starting {started}." if started else "Using the workers that run already."


def _check_output(path: Path) -> None:
    if path.name == "-" or (path.exists() and not (path.is_file() or path.is_dir())):
        raise UnusableInput(
            "The output must be a file: a run that was interrupted reads it again to continue. Name one with -o."
        )
    if path.suffix.lower() in OTHER_FORMATS:
        raise UnusableInput(f"The output is JSON lines, not {path.suffix}. Name a file such as out.jsonl.")


def _check_redis(url: str) -> None:
    try:
        Address.of(url)
    except ValueError as error:
        raise UnusableInput(f"--redis: {error}.") from None
