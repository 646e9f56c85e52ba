"""Which sentinels watch which master, and why none of them could say where it is."""

from __future__ import annotations

from dataclasses import dataclass, field

from redis import exceptions as redis_errors
from redis import sentinel as redis_sentinel

__all__ = ["Failures", "MasterNotFound", "Sentinels"]


class MasterNotFound(redis_sentinel.MasterNotFoundError):
    """Nobody could say where the master is. The text says why, and what to do; it holds no password."""


@dataclass(frozen=True, slots=True)
class Sentinels:
    """The sentinels that watch one master, and what they want to see before they answer."""

    hosts: tuple[tuple[str, int], ...]
    master_name: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return ", ".join(f"{host}:{port}" for host, port in self.hosts)

    def __json__(self) -> str:
        """What `celery inspect` and Flower show: as an option of kombu's connection it is sent to whoever asks."""
        return str(self)


class Failures:
    """Why a search found nothing."""

    def __init__(self, sentinels: Sentinels) -> None:
        self._sentinels = sentinels
        self._refused = ""
        self._silent: list[str] = []
        self.answered = False
        self.is_down = False
        self.is_behind = False
        self.known_names: set[str] = set()

    def add(self, place: tuple[str, int], error: Exception) -> None:
        where = f"{place[0]}:{place[1]}"
        if isinstance(error, redis_errors.AuthenticationError | redis_errors.NoPermissionError):
            self._refused = where
        elif isinstance(error, redis_errors.ResponseError):
            self._silent.append(f"{where} is no sentinel")
        else:
            self._silent.append(f"{where}: {type(error).__name__}")

    def verdict(self) -> MasterNotFound:
        name = self._sentinels.master_name
        if self.is_down:
            return MasterNotFound(
                f"the master {name} is down, and no replica has taken over yet; if this lasts, ask a sentinel why: "
                f"redis-cli -p 26379 SENTINEL CKQUORUM {name}"
            )
        if self.is_behind:
            return MasterNotFound(
                f"the sentinels that answer know only a former master {name}; if this lasts, check that they reach the "
                f"others, and what each says: redis-cli -p 26379 SENTINEL MASTER {name}"
            )
        if self.answered:
            known = ", ".join(sorted(self.known_names)) or "none"
            return MasterNotFound(
                f"the sentinels know no master {name} (known: {known}); check master_name in the Redis URL"
            )
        if self._refused:
            return MasterNotFound(
                f"the sentinel at {self._refused} refused the user or password; check sentinel_username and "
                "sentinel_password in the Redis URL (what stands before the host is for Redis)"
            )
        return MasterNotFound(
            f"no sentinel answers ({', '.join(self._silent)}); check that they run, and the hosts and ports of the "
            "Redis URL"
        )
