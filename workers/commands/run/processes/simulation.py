"""`--simulate`: the simulated provider as a process, and a catalogue that sends everything to it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from config.catalog import Catalog, Limits, Model, Price, Provider, Route, StructuredOutputs
from tasks.wire.kinds import Api
from workers.simulator.dialects import DIALECTS, DialectName
from workers.simulator.faults import parse_fault
from workers.simulator.options import SimulatorOptions

from ..errors import RunError, UnusableInput
from ..output.state import RunState
from .environ import engine_environ
from .lifeline import Child, Lifeline, log_tail
from .toml import table

__all__ = ["Simulation", "Simulator", "simulated_catalog"]

PROVIDER = "simulator"
READY_TIMEOUT_S = 30.0
STOP_GRACE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """How the simulated provider is to behave: the options of `promptmill simulate` that `run` takes too.

    None leaves the simulator's own default.
    """

    dialect: DialectName | None = None
    latency_ms: float | None = None
    jitter: float | None = None
    rpm: int | None = None
    tpm: int | None = None
    algorithm: str | None = None
    burst: int | None = None
    faults: tuple[str, ...] = ()
    seed: int | None = None

    def given(self) -> dict[str, Any]:
        """The options that were given, but for the faults."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "faults"}
        return {name: value for name, value in values.items() if value is not None}

    def check(self) -> None:
        """Raises `UnusableInput` for what the simulator would refuse."""
        try:
            SimulatorOptions(**self.given(), faults=dict(map(parse_fault, self.faults)))
        except ValueError as error:
            raise UnusableInput(f"The simulated provider can't do that: {error}.") from None

    def command(self, *, ready_fd: int) -> list[str]:
        """It writes its URL to `ready_fd`, a file descriptor that it inherits."""
        command = [sys.executable, "-P", "-m", "workers.cli", "simulate", "--port", "0", "--ready-fd", str(ready_fd)]
        for name, value in self.given().items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        for fault in self.faults:
            command += ["--fault", fault]
        return command

    @property
    def kind(self) -> str:
        """The catalogue's word for the wire that it speaks."""
        return DIALECTS[self.dialect or SimulatorOptions().dialect].kind

    @property
    def structured_outputs(self) -> StructuredOutputs:
        """Which `response_format` it takes."""
        return DIALECTS[self.dialect or SimulatorOptions().dialect].structured_outputs

    @property
    def apis(self) -> list[Api]:
        """The endpoints that it has."""
        return sorted(DIALECTS[self.dialect or SimulatorOptions().dialect].apis)

    def limits(self) -> Limits:
        """What a limiter is told of it."""
        if self.rpm is None and self.tpm is None:
            return Limits()
        algorithm = self.algorithm or SimulatorOptions().algorithm
        return Limits.model_validate({"rpm": self.rpm, "tpm": self.tpm, "algorithm": algorithm})


class Simulator:
    """The running simulated provider."""

    def __init__(self, child: Child, url: str) -> None:
        self._child = child
        self.url = url

    @classmethod
    async def start(cls, simulation: Simulation, *, lifeline: Lifeline, state: RunState) -> Simulator:
        """Start it and wait for its address. Raises `RunError` if it ends instead."""
        log = state.log("simulator")
        log.unlink(missing_ok=True)
        told, ready = os.pipe()
        try:
            child = lifeline.start(
                simulation.command(ready_fd=ready), kind="server", log=log, environ=engine_environ(), pass_fds=(ready,)
            )
        except BaseException:
            os.close(told)
            raise
        finally:
            os.close(ready)
        url = await _text_of(told, timeout_s=READY_TIMEOUT_S)
        if not url:
            raise RunError(f"The simulated provider did not start. Its last words:\n{log_tail(log)}")
        return cls(child, url)

    async def wait(self) -> None:
        """Returns never as long as it runs; raises `RunError` when it has ended by itself."""
        code = await self._child.wait()
        raise RunError(
            f"The simulated provider stopped by itself (exit code {code}). Its last words:\n{log_tail(self._child.log)}"
        )

    async def stop(self) -> None:
        await self._child.stop(grace_s=STOP_GRACE_S)


async def _text_of(pipe: int, *, timeout_s: float) -> str:
    """All that is written to a pipe until nobody has its other end open, and closes it; empty after `timeout_s`."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    pieces: list[bytes] = []

    def read() -> None:
        pieces.append(os.read(pipe, 4_096))
        if not pieces[-1]:
            loop.remove_reader(pipe)
            ended.set()

    loop.add_reader(pipe, read)
    try:
        await asyncio.wait_for(ended.wait(), timeout_s)
    except TimeoutError:
        return ""
    finally:
        loop.remove_reader(pipe)
        os.close(pipe)
    return b"".join(pieces).decode()


def simulated_catalog(
    catalog: Catalog,
    *,
    url: str,
    limits: Limits,
    kind: str = "openai",
    structured_outputs: StructuredOutputs = "json_schema",
    apis: Sequence[Api] = ("chat", "embeddings"),
) -> str:
    """The catalogue's models, with their prices, as a TOML file in which all of them are the simulator's.

    The real providers stand in it without keys and at the simulator's address: a simulated run must be unable to
    send anything elsewhere, and must not stop at a key that is missing.
    """
    wire = {"base_url": url, "kind": kind, "structured_outputs": structured_outputs, "apis": [*apis], "api_keys": []}
    tables = [_provider_table(provider, wire) for provider in catalog.providers.values()]
    tables.append(table("providers", PROVIDER, wire))
    for model in catalog.models.values():
        has_flex = model.flex and kind != "anthropic"
        tables.append(_model_table(model, limits, catalog.repeats_timeouts(model), has_flex=has_flex))
    tables += [_route_table(route) for route in catalog.routes.values()]
    return "\n".join(tables)


def _provider_table(provider: Provider, wire: dict[str, Any]) -> str:
    values = {
        **wire,
        "any_model": provider.any_model,
        "timeout": provider.timeout.model_dump(exclude_none=True),
        "repeat_timeouts": provider.repeat_timeouts,
    }
    return table("providers", provider.name, values)


OF_THE_MODEL = {
    "context_tokens",
    "max_output_tokens",
    "max_inputs",
    "max_input_tokens",
    "max_tokens_per_input",
    "tokenizer",
    "fallbacks",
    "fallback_on",
}
"""What a simulated model keeps of the real one as it is."""


def _model_table(model: Model, limits: Limits, repeat_timeouts: bool, *, has_flex: bool) -> str:
    values: dict[str, Any] = {
        "provider": PROVIDER,
        "upstream": model.upstream,
        "limits": limits.model_dump(exclude_none=True),
        "timeout": model.timeout.model_dump(exclude_none=True),
        "repeat_timeouts": repeat_timeouts,
        "flex": has_flex,
        **model.model_dump(mode="json", include=OF_THE_MODEL, exclude_none=True),
    }
    if model.price is not None:
        values["price"] = _price(model.price)
    return table("models", model.name, values)


def _route_table(route: Route) -> str:
    return table("routes", route.name, route.model_dump(mode="json", exclude={"name"}, exclude_none=True))


def _price(price: Price) -> dict[str, Any]:
    origin = {"currency", "date", "source"}
    amounts = price.model_dump(exclude=origin, exclude_none=True)
    return {
        **{name: float(amount) for name, amount in amounts.items()},
        **price.model_dump(mode="json", include=origin),
    }
