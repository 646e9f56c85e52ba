"""The command `promptmill simulate`."""

from __future__ import annotations

from typing import Annotated

import orjson
import typer

from ..simulator.dialects import DialectName
from ..simulator.faults import FAULTS, parse_fault
from ..simulator.limits import Algorithm
from ..simulator.options import SimulatorOptions, TpmCharge
from ..simulator.server import serve
from .failing import fail
from .ready import ReadyFdOption, check_ready_fd, tell_ready

__all__ = ["simulate"]

_DEFAULT = SimulatorOptions()


def simulate(  # noqa: PLR0917 - Typer makes an option of each; nobody calls it by position
    host: Annotated[str, typer.Option(help="Address to listen on.")] = _DEFAULT.host,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = _DEFAULT.port,
    dialect: Annotated[
        DialectName, typer.Option(help="Whose paths, key header, limit headers, errors and answers.")
    ] = _DEFAULT.dialect,
    latency_ms: Annotated[float, typer.Option(help="Mean time to an answer, in milliseconds.")] = _DEFAULT.latency_ms,
    jitter: Annotated[
        float, typer.Option(help="Spread of the latency, as a share of its mean; 0 = exact.")
    ] = _DEFAULT.jitter,
    flex_latency_ms: Annotated[
        float | None, typer.Option(help="The same for the flex tier.", show_default="as the others")
    ] = _DEFAULT.flex_latency_ms,
    rpm: Annotated[int | None, typer.Option(help="Requests a minute, for each key and model.")] = _DEFAULT.rpm,
    tpm: Annotated[int | None, typer.Option(help="Tokens a minute, for each key and model.")] = _DEFAULT.tpm,
    tpm_charge: Annotated[
        TpmCharge, typer.Option(help="Count real usage, or the prompt and max_tokens, towards --tpm.")
    ] = _DEFAULT.tpm_charge,
    algorithm: Annotated[Algorithm, typer.Option(help="How the limits are enforced.")] = _DEFAULT.algorithm,
    burst: Annotated[
        int | None, typer.Option(help="Requests that the bucket holds.", show_default="one second's worth")
    ] = _DEFAULT.burst,
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SHARE", help=f"A fault and its share of calls; repeatable. {', '.join(FAULTS)}."),
    ] = None,
    output_tokens: Annotated[float, typer.Option(help="Mean length of an answer, in tokens.")] = _DEFAULT.output_tokens,
    tokens_per_s: Annotated[
        float | None, typer.Option(help="How fast a streamed answer comes.", show_default="within the latency")
    ] = _DEFAULT.tokens_per_s,
    dimensions: Annotated[int, typer.Option(help="Numbers in a vector.")] = _DEFAULT.embedding_dimensions,
    max_inputs: Annotated[int | None, typer.Option(help="Inputs of a call for embeddings.")] = _DEFAULT.max_inputs,
    max_input_tokens: Annotated[
        int | None, typer.Option(help="Tokens of such a call's inputs together.")
    ] = _DEFAULT.max_input_tokens,
    max_tokens_per_input: Annotated[
        int | None, typer.Option(help="Tokens of one such input.")
    ] = _DEFAULT.max_tokens_per_input,
    poison: Annotated[
        str | None, typer.Option(metavar="TEXT", help="An input with this text in it is refused, and its call.")
    ] = _DEFAULT.poison,
    seed: Annotated[int, typer.Option(help="The same seed repeats the same run.")] = _DEFAULT.seed,
    api_key: Annotated[
        str | None, typer.Option(help="The one key that is let in.", show_default="any, or none")
    ] = _DEFAULT.api_key,
    ready_fd: ReadyFdOption = None,
) -> None:
    """Serve a provider that answers, limits and fails as told, and costs nothing: OpenAI, or another by --dialect.

    Prints its URL when it is ready. GET /__ledger lists the calls it served, GET /__stats the totals, which it
    also prints to stderr when SIGINT or SIGTERM stops it. The request header `x-simulate: NAME` asks for a fault
    for one call. POST /__faults {"faults": {"503": 1.0}, "for_s": 30} takes the place of --fault from now on, for 30
    seconds: an outage at will; without "for_s" until the next change.
    """
    try:
        options = SimulatorOptions(
            host=host,
            port=port,
            dialect=dialect,
            latency_ms=latency_ms,
            jitter=jitter,
            flex_latency_ms=flex_latency_ms,
            rpm=rpm,
            tpm=tpm,
            tpm_charge=tpm_charge,
            algorithm=algorithm,
            burst=burst,
            faults=_faults(fault or []),
            output_tokens=output_tokens,
            tokens_per_s=tokens_per_s,
            embedding_dimensions=dimensions,
            max_inputs=max_inputs,
            max_input_tokens=max_input_tokens,
            max_tokens_per_input=max_tokens_per_input,
            poison=poison,
            seed=seed,
            api_key=api_key,
        )
    except ValueError as error:
        fail(f"The simulated provider can't do that: {error}.")
    check_ready_fd(ready_fd)
    try:
        serve(
            options,
            on_ready=lambda url: tell_ready(url, ready_fd),
            on_stop=lambda stats: typer.echo(orjson.dumps(stats), err=True),
        )
    except OSError as error:
        fail(f"Can't listen on {host} port {port} ({error.strerror}). Choose another, or --port 0.")


def _faults(texts: list[str]) -> dict[str, float]:
    return dict(map(parse_fault, texts))
