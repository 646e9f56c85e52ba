"""`promptmill metrics` as a process, and what it answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client.parser import text_string_to_metric_families

from tests.support.listening import started

COMMAND = (sys.executable, "-c", "from workers.cli import main; main()", "metrics")
PRIVATE = ("PROMPTMILL_", "OPENAI_")
PATIENCE_S = 30.0

Scraped = dict[str, dict[tuple[str, ...], float]]
"""Sample name -> the labels' values, in the order of the labels' names -> figure."""


def inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}


class Exporter:
    """One that runs."""

    def __init__(self, *options: str, environ: Mapping[str, str] | None = None) -> None:
        self.process, self.url = started(
            [*COMMAND, "--port", "0", *options], env={**inherited(), **(environ or {})}, stderr=subprocess.PIPE
        )

    def text(self, *, accept: str = "text/plain") -> str:
        request = urllib.request.Request(self.url, headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
            return str(reply.read().decode())

    def scrape(self) -> Scraped:
        scraped: Scraped = {}
        for family in text_string_to_metric_families(self.text()):
            for sample in family.samples:
                labels = tuple(sample.labels[name] for name in sorted(sample.labels))
                scraped.setdefault(sample.name, {})[labels] = sample.value
        return scraped

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Its exit code, and what it has logged."""
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, log


@contextmanager
def exporter(*options: str, environ: Mapping[str, str] | None = None) -> Iterator[Exporter]:
    running = Exporter(*options, environ=environ)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()
