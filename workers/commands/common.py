"""What all commands share: one `--redis`, one `--json`, and one way to fail."""

from __future__ import annotations

from typing import Annotated, Final, NoReturn

import typer

from config.settings import Settings, SettingsError, get_settings
from tasks.redis.address import Address, failure

from ..telemetry.terminal import printable_lines

__all__ = ["CHECK_REDIS", "JsonOption", "RedisOption", "address_of", "fail", "fail_for_redis", "settings_or_fail"]

RedisOption = Annotated[str | None, typer.Option("--redis", help="Redis URL of the queue.", show_default="settings")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout instead, one object a line.")]

CHECK_REDIS: Final = "Check that it runs, and PROMPTMILL_REDIS_URL or --redis."


def fail(text: str, *, exit_code: int = 2) -> NoReturn:
    """End the command with an error on stderr. The text says what is wrong and what to do next.

    Exit code 2 means that the command could not do what it was asked to, 1 that it did and found a failure.
    """
    typer.secho(f"Error: {printable_lines(text)}", fg=typer.colors.RED, err=True)
    raise typer.Exit(exit_code)


def settings_or_fail() -> Settings:
    """The settings of this process."""
    try:
        return get_settings()
    except SettingsError as error:
        fail(str(error))


def address_of(option: str | None, setting: str) -> Address:
    """Where Redis is: as `--redis` says, or else as the setting does, which was checked when it was read."""
    try:
        return Address.of(option or setting)
    except ValueError as error:
        fail(f"--redis: {error}.")


def fail_for_redis(error: Exception) -> NoReturn:
    """End the command because Redis could not be asked."""
    fail(f"Redis can't be asked: {failure(error)}. {CHECK_REDIS}")
