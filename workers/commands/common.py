"""What the commands that ask Redis share: one `--redis`, one `--json`, the settings."""

from __future__ import annotations

from typing import Annotated, Final, NoReturn

import typer

from config.settings import Settings, SettingsError, get_settings
from tasks.redis.address import Address, failure

from .failing import fail

__all__ = ["CHECK_REDIS", "JsonOption", "RedisOption", "address_of", "fail_for_redis", "settings_or_fail"]

RedisOption = Annotated[str | None, typer.Option("--redis", help="Redis URL of the queue.", show_default="settings")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout instead, one object a line.")]

CHECK_REDIS: Final = "Check that it runs, and PROMPTMILL_REDIS_URL or --redis."


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
