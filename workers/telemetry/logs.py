"""The worker's log lines: for people by default, one JSON object a line with `PROMPTMILL_LOG__JSON=true`."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from io import StringIO
from typing import Any, TextIO

import click
import structlog
from click.core import ParameterSource

from config.settings import Log, get_settings

from .terminal import printable, printable_lines

__all__ = ["configure"]

JOB_LOGGERS = ("celery.worker.strategy", "celery.app.trace", "celery.worker.request")
"""They write two lines at INFO for each job, some 100 us; `-l INFO` or `PROMPTMILL_LOG__JOBS` ask for them."""


def configure(loglevel: int | str | None = None, logfile: str | None = None, **_: Any) -> None:
    """Receive Celery's `setup_logging` signal, which tells it to leave logging to us.

    `celery worker -l LEVEL` stands over `PROMPTMILL_LOG__LEVEL`.
    """
    settings = get_settings().log
    handler: logging.Handler = logging.FileHandler(logfile) if logfile else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(settings, is_terminal=logfile is None and sys.stderr.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    asked = loglevel if loglevel is not None and _was_asked_for("loglevel") else None
    root.setLevel(settings.level if asked is None else asked)
    shows_jobs = settings.jobs or asked is not None
    for name in JOB_LOGGERS:
        # Set either way: the process may have been configured before.
        logging.getLogger(name).setLevel(logging.NOTSET if shows_jobs else logging.WARNING)


def _was_asked_for(option: str) -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source(option) is not ParameterSource.DEFAULT


def _formatter(settings: Log, *, is_terminal: bool) -> logging.Formatter:
    shared: list[Any] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.PositionalArgumentsFormatter(),
    ]
    rendering: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if settings.json:
        shared.append(structlog.stdlib.ExtraAdder())
        rendering += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        rendering += [
            _make_printable,
            structlog.dev.ConsoleRenderer(colors=is_terminal, exception_formatter=_write_traceback),
        ]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=rendering)


def _make_printable(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """An id, a task's name or a reason may hold anything: it neither moves the cursor nor begins a line of its own."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = printable(value)
    return event


def _write_traceback(to: TextIO, exc_info: Any) -> None:
    """Indented, so that no line of an exception's text looks like a line of the log.

    Structlog's plain one: the pretty ones show local variables, and those hold prompts and keys.
    """
    text = StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    to.write("\n" + printable_lines(text.getvalue().strip("\n"), indent="    "))
