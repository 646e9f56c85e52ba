"""`promptmill status ID` and `promptmill cancel ID`: one job, or a group."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tasks import PromptmillError, PromptQueue, UnknownJob
from tasks.wire.redis_keys import GROUP_ID_PREFIX

from ..telemetry.terminal import printable
from .common import JsonOption, RedisOption, address_of, settings_or_fail
from .failing import fail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tasks.blocking import SyncQueue

__all__ = ["cancel", "status"]

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="A job's id, or a group's (pmg-...).")]


def status(
    job_id: IdArgument,
    as_json: JsonOption = False,
    redis: RedisOption = None,
) -> None:
    """Show how a job, or a group of jobs, stands. Exit code 1: unknown."""
    with _queue(redis) as queue:
        shown = _of_group(queue, job_id) if job_id.startswith(GROUP_ID_PREFIX) else _of_job(queue, job_id)
    if as_json:
        typer.echo(json.dumps(shown))
    else:
        for name, value in shown.items():
            if value is not None:
                typer.echo(f"{name:10} {printable(value)}")
    raise typer.Exit(1 if shown["status"] == "unknown" else 0)


def _of_group(queue: SyncQueue, group_id: str) -> dict[str, Any]:
    progress = asdict(queue.group(group_id).progress())
    return {"id": group_id, "status": "known", **progress}


def _of_job(queue: SyncQueue, job_id: str) -> dict[str, Any]:
    job = queue.job(job_id)
    state = job.status()
    shown: dict[str, Any] = {"id": job_id, "status": state}
    if state in {"failed", "cancelled", "expired"}:
        try:
            job.result(timeout_s=1.0)
        except PromptmillError as error:
            shown["error"] = str(error)
    return shown


def cancel(job_id: IdArgument, redis: RedisOption = None) -> None:
    """Cancel a job, or all jobs of a group: queued, waiting or running. Exit code 1: there was nothing to cancel."""
    with _queue(redis) as queue:
        if job_id.startswith(GROUP_ID_PREFIX):
            cancelled = _cancel_group(queue, job_id)
        else:
            job = queue.job(job_id)
            cancelled = int(job.cancel())
            if not cancelled and job.status() == "unknown":
                _unknown(
                    f"no job {job_id} is known; what a Celery producer sent is cancelled by `celery control revoke`"
                )
    typer.echo(f"{cancelled} cancelled")
    raise typer.Exit(0 if cancelled else 1)


def _cancel_group(queue: SyncQueue, group_id: str) -> int:
    try:
        return queue.group(group_id).cancel()
    except UnknownJob as unknown:
        _unknown(str(unknown))


def _unknown(text: str) -> NoReturn:
    typer.echo(f"0 cancelled: {text}")
    raise typer.Exit(1)


@contextmanager
def _queue(redis: str | None) -> Iterator[SyncQueue]:
    settings = settings_or_fail()
    address_of(redis, settings.broker)
    queue = PromptQueue(
        redis or settings.broker, result_url=None if redis else settings.results, key_prefix=settings.key_prefix
    )
    try:
        yield queue.sync
    except PromptmillError as error:
        fail(str(error))
    finally:
        queue.sync.close()
