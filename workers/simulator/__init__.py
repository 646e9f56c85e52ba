"""A simulated LLM provider: strict about its limits, wrong in every way that real ones are, and of many tongues.

    simulator = await start(SimulatorOptions(latency_ms=200, rpm=600, faults={"429": 0.05}))
    ...                                 # talk to simulator.url
    await simulator.stop()

Read `provider` first: it decides what becomes of a call; `delivery` does it. `dialects` says how OpenAI, Anthropic,
Azure, Gemini and others differ on the wire.

Its ceiling is about 10,000 requests a second per core (0.1 ms of CPU each: chat answers of 1 KB, no latency,
connections kept alive, CPython 3.11 and uvloop on a 2-core virtual machine). Measure it with
`python -m tests.workers.simulator.ceiling`.
"""

from __future__ import annotations

from .faults import FAULTS, parse_fault
from .options import SimulatorOptions
from .request import prompt_hash
from .server import FAULT_HEADER, JOB_ID_HEADER, RunningSimulator, serve, start

__all__ = [
    "FAULTS",
    "FAULT_HEADER",
    "JOB_ID_HEADER",
    "RunningSimulator",
    "SimulatorOptions",
    "parse_fault",
    "prompt_hash",
    "serve",
    "start",
]
