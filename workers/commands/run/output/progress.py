"""How far a run is, on stderr: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from .tally import Tally

__all__ = ["Snapshot", "show_progress"]

LINE_WIDTH = 79
"""A terminal's usual 80 columns, one of them for the cursor."""

BAR_WIDTH = 12
SEPARATOR = " · "
LIVE_INTERVAL_S = 0.2
PLAIN_INTERVAL_S = 5.0
RATE_SPAN_S = 10.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one moment. `total` is None until the input's rows are counted, `rate_per_s` until it is known."""

    done: int
    total: int | None
    rate_per_s: float | None
    queued: int
    failed: int
    rate_limited: int
    tokens: int
    cost_usd: float | None

    @property
    def left_s(self) -> float | None:
        """Seconds until the end at the present rate."""
        if self.total is None or not self.rate_per_s:
            return None
        return max(0, self.total - self.done) / self.rate_per_s

    def text(self, width: int = LINE_WIDTH) -> str:
        """As much of it as fits, the most important first."""
        total = "?" if self.total is None else f"{self.total:,}"
        rate = "-" if self.rate_per_s is None else f"{self.rate_per_s:,.0f}"
        parts = [f"{self.done:,}/{total} rows", f"{self.queued:,} queued"]
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        parts += [f"{rate}/s", f"{duration(self.left_s)} left"]
        extras = [f"{self.rate_limited:,} x 429"] if self.rate_limited else []
        if self.cost_usd is not None:
            extras.append(f"${self.cost_usd:,.4f}")
        extras.append(f"{self.tokens:,} tokens")
        for part in extras:
            if len(SEPARATOR.join([*parts, part])) <= width:
                parts.append(part)
        return SEPARATOR.join(parts)


class _Rate:
    """Rows a second over the last few seconds: the mean since the start would hide a stall."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()

    def after(self, done: int) -> float | None:
        now_s = self._clock()
        self._samples.append((now_s, done))
        while len(self._samples) > 2 and self._samples[0][0] < now_s - RATE_SPAN_S:
            self._samples.popleft()
        first_s, first_done = self._samples[0]
        return (done - first_done) / (now_s - first_s) if now_s > first_s and done > first_done else None


class _LineView:
    """A plain line now and then, for logs."""

    interval_s = PLAIN_INTERVAL_S

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, snapshot: Snapshot) -> None:
        self._console.print(snapshot.text(), highlight=False, soft_wrap=True)


class _BarView:
    """A bar that goes away at the end: the summary says the same, and more."""

    interval_s = LIVE_INTERVAL_S

    def __init__(self, console: Console) -> None:
        # No refresh thread: it would compete with the event loop for the interpreter.
        self._bar = Progress(
            BarColumn(bar_width=BAR_WIDTH),
            TextColumn("{task.fields[line]}"),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, line="")

    def __enter__(self) -> None:
        self._bar.start()

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, snapshot: Snapshot) -> None:
        line = snapshot.text(LINE_WIDTH - BAR_WIDTH - 1)
        self._bar.update(self._task, completed=snapshot.done, total=snapshot.total, line=line)
        self._bar.refresh()


async def show_progress(
    console: Console, tally: Tally, *, queued: Callable[[], int], total: Callable[[], int | None]
) -> None:
    """Show until cancelled."""
    rate = _Rate(time.monotonic)
    show = _BarView(console) if console.is_terminal else _LineView(console)
    with show:
        while True:
            await asyncio.sleep(show.interval_s)
            show(_snapshot(tally, queued=queued(), total=total(), rate=rate))


def duration(time_s: float | None) -> str:
    """As people say it: `4 s`, `3 min 20 s`, `2 h 5 min`."""
    if time_s is None:
        return "?"
    minutes, seconds = divmod(round(time_s), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _snapshot(tally: Tally, *, queued: int, total: int | None, rate: _Rate) -> Snapshot:
    return Snapshot(
        done=tally.rows,
        total=total,
        rate_per_s=rate.after(tally.rows),
        queued=queued,
        failed=tally.ended - tally.statuses["succeeded"] + tally.bad_rows,
        rate_limited=tally.rate_limited,
        tokens=tally.input_tokens + tally.output_tokens,
        cost_usd=None if tally.cost_usd is None else float(tally.cost_usd),
    )
