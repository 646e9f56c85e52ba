"""What is looked at before a worker takes jobs: a set-up that would lose them is refused, with the reason.

`checks_at_start` runs when Celery has set the worker up (config/celeryconfig.py imports this module);
`promptmill doctor` shows the same findings.
"""

from __future__ import annotations

import logging
import resource
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from celery import signals
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from config.settings import get_settings
from tasks.redis.address import Address, failure
from tasks.wire import redis_keys
from tasks.wire.message import revoke_channel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from redis import Redis

    from config.settings import Settings

__all__ = ["Finding", "check_file_limit", "check_redis", "check_settings_redis", "checks_at_start"]

logger = logging.getLogger("promptmill.checks")

OLDEST_REDIS = (6, 2)
REDIS_TIMEOUT_S = 3.0

RIGHTS_CHANNEL = f"{redis_keys.RESULT_PREFIX}check-of-rights"
"""Of the kind on which results are published; nobody waits for a job of this id."""

LIKELY_SEPARATORS = (redis_keys.PRIORITY_SEPARATOR, ":", "-", "_", ".", "/", "|", "#", "")
"""Between a queue's name and a priority step (kombu's `sep`)."""

OTHER_FILES = 100
"""What a worker opens besides a connection for each prompt in flight: Redis, logs, modules, pipes."""

Level = Literal["ok", "warning", "refused"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `refused`: a worker does not start with it."""

    level: Level
    subject: str
    text: str

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def check_redis(
    redis: Redis, *, subject: str, holds_queue: bool = True, channels: Sequence[str] = ()
) -> Iterator[Finding]:
    """Look at a Redis: version, kind, eviction, persistence, rights. Raises redis's errors.

    `holds_queue`: it is the queue's; a results' Redis is refused only where it can't work at all. `channels`: those
    that the user must be allowed to use.
    """
    info: Any = redis.info()
    yield _version(info, subject)
    if info.get("redis_mode") == "cluster":
        text = "it is a node of a Redis Cluster, which Promptmill does not support."
        yield Finding("refused", subject, f"{text} Use one Redis, or one behind Sentinel.")
        return
    config = _config(redis, info)
    yield _eviction(config, subject, holds_queue)
    yield _persistence(config, subject, holds_queue)
    yield from _rights(redis, subject, channels)
    if holds_queue:
        yield from _scripts(redis, subject)
        yield from _unread(redis, subject)


def _config(redis: Redis, info: Mapping[str, Any]) -> dict[str, str]:
    try:
        # One by one: Redis 6.2 takes no more.
        return {name: _setting(redis, name) for name in ("maxmemory-policy", "appendonly", "save")}
    except ResponseError:
        # Managed and hardened servers hide CONFIG. INFO tells all but the snapshots' times.
        appendonly = "yes" if info.get("aof_enabled") else "no"
        return {"maxmemory-policy": str(info.get("maxmemory_policy", "unknown")), "appendonly": appendonly, "save": ""}


def _setting(redis: Redis, name: str) -> str:
    found: Any = redis.config_get(name)
    return str(found.get(name, ""))


def _rights(redis: Redis, subject: str, channels: Sequence[str]) -> Iterator[Finding]:
    """Whether the user may use these channels. Without them workers reconnect without end, and results reach nobody."""
    try:
        with redis.pubsub() as pubsub:  # type: ignore[no-untyped-call] # redis-py leaves it without types
            for channel in channels:
                # As kombu does. A pattern must be one of the user's own, letter by letter.
                pubsub.psubscribe(channel)
                pubsub.parse_response()
        if channels:
            redis.publish(RIGHTS_CHANNEL, "")
    except NoPermissionError as exc:
        missing = f"its user lacks a right to Redis's channels ({exc})"
        advice = "Give it the right to all of them: `ACL SETUSER <user> +@pubsub allchannels`."
        yield Finding("refused", subject, f"{missing}. {advice}")


def _scripts(redis: Redis, subject: str) -> Iterator[Finding]:
    """Whether scripts may use keys that were not declared before: which records belong to the jobs that a script takes
    shows when it has taken them."""
    try:
        redis.eval("return redis.call('EXISTS', ARGV[1])", 0, redis_keys.NO_KEY)
    except ResponseError as exc:
        if "declared" not in str(exc):
            raise
        missing = f"it lets scripts use no key that was not declared before ({exc}), which Promptmill's have to"
        yield Finding("refused", subject, f"{missing}. Use Redis itself; Dragonfly is not supported.")


def _version(info: Mapping[str, Any], subject: str) -> Finding:
    version = str(info["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
        wanted = ".".join(map(str, OLDEST_REDIS))
        return Finding("refused", subject, f"it is Redis {version}; Promptmill needs {wanted} or newer. Upgrade it.")
    return Finding("ok", subject, f"Redis {version}")


def _eviction(config: dict[str, str], subject: str, holds_queue: bool) -> Finding:
    policy = config["maxmemory-policy"]
    if policy == "unknown":
        return Finding("warning", subject, "it does not tell its maxmemory-policy, which must be noeviction")
    if policy == "noeviction":
        return Finding("ok", subject, "maxmemory-policy is noeviction")
    text = f"maxmemory-policy is {policy}: when Redis is full it deletes "
    if not holds_queue:
        return Finding("warning", subject, text + "results before they are read. Set it to noeviction.")
    level: Level = "warning" if get_settings().allow_eviction else "refused"
    advice = "Run `redis-cli CONFIG SET maxmemory-policy noeviction`, or accept it: PROMPTMILL_ALLOW_EVICTION=true."
    return Finding(level, subject, f"{text}queued jobs, and nobody is told. {advice}")


def _persistence(config: dict[str, str], subject: str, holds_queue: bool) -> Finding:
    if config["appendonly"] == "yes":
        return Finding("ok", subject, "it keeps an append-only file")
    what = "queued jobs" if holds_queue else "results"
    if config["save"]:
        return Finding(
            "warning", subject, f"it saves snapshots only: a crash loses {what} since the last. Set appendonly yes."
        )
    return Finding("warning", subject, f"it keeps nothing on disk: a restart loses all {what}. Set appendonly yes.")


def check_file_limit(concurrency: int, *, limit: int | None = None) -> Finding:
    """Whether a worker with so many prompts in flight may open enough files. `limit`: the process's, unless given."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    needed = concurrency + OTHER_FILES
    if limit != resource.RLIM_INFINITY and limit < needed:
        return Finding(
            "refused",
            "open files",
            f"`ulimit -n` is {limit}, and {concurrency} prompts in flight need about {needed}. Raise it "
            f"(`ulimit -n {2 * needed}`; systemd: LimitNOFILE=), or use at most `-c {max(limit - OTHER_FILES, 1)}`.",
        )
    return Finding("ok", "open files", f"the limit of {limit} is enough for {concurrency} prompts in flight")


def check_settings_redis(*, when_away: Level = "warning") -> list[Finding]:
    """Look at the settings' Redis, or two where queue and results are apart. `when_away`: of one that is away."""
    settings = get_settings()
    if settings.broker == settings.results:
        return _look(settings.broker, subject="Redis", holds_queue=True, when_away=when_away)
    queue = _look(settings.broker, subject="Redis of the queue", holds_queue=True, when_away=when_away)
    results = _look(settings.results, subject="Redis of the results", holds_queue=False, when_away=when_away)
    return queue + results


def _look(url: str, *, subject: str, holds_queue: bool, when_away: Level) -> list[Finding]:
    address = Address.of(url)
    channels = _channels(address.database) if holds_queue else [RIGHTS_CHANNEL]
    client = address.client(
        decode_responses=True, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S
    )
    with client as redis:
        try:
            return list(check_redis(redis, subject=subject, holds_queue=holds_queue, channels=channels))
        except (RedisConnectionError, RedisTimeoutError, OSError) as exc:
            advice = "Check that it runs, and PROMPTMILL_REDIS_URL."
            return [Finding(when_away, subject, f"it can't be reached: {failure(exc)}. {advice}")]
        except RedisError as exc:
            return [Finding("warning", subject, f"it refused to be looked at: {exc}")]


def _channels(database: int) -> list[str]:
    """One of each kind that workers use: remote control, results, pauses."""
    prefix = get_settings().key_prefix
    return [
        revoke_channel(prefix, database),
        RIGHTS_CHANNEL,
        *(prefix + name for name in (redis_keys.LIMITER_PAUSES, redis_keys.BREAKER_CHANNEL)),
    ]


def lists_of(queue: str, settings: Settings) -> dict[str, int]:
    """The lists of a queue that workers with these settings read, most urgent first, with their priority steps."""
    producers = settings.producers
    return redis_keys.queue_lists(
        queue, other_steps=producers.priority_steps or (), other_separator=producers.separator or ""
    )


def unread_lists(queue: str, settings: Settings) -> list[str]:
    """Names under which producers with priority settings of their own may write, and which no worker reads."""
    likely = [redis_keys.queue_list(queue, step, separator) for separator in LIKELY_SEPARATORS for step in range(1, 10)]
    read = lists_of(queue, settings)
    return [name for name in likely if name not in read]


def _unread(redis: Redis, subject: str) -> Iterator[Finding]:
    settings = get_settings()
    names = unread_lists(redis_keys.QUEUE, settings)
    with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.llen(settings.key_prefix + name)
        lengths = pipe.execute(raise_on_error=False)
    for name, length in zip(names, lengths, strict=True):
        if isinstance(length, int) and length:
            yield Finding(
                "warning",
                subject,
                f"{length} messages wait in the list {name!r}, which no worker reads: their producer has "
                "priority_steps or a sep of its own. Set PROMPTMILL_PRODUCERS__PRIORITY_STEPS and "
                "PROMPTMILL_PRODUCERS__SEPARATOR to those.",
            )


def refuse(findings: Iterable[Finding]) -> None:
    """Log what is not as it should be. Raises SystemExit with what is refused."""
    refused = []
    for finding in findings:
        if finding.level == "refused":
            refused.append(finding)
        elif finding.level == "warning":
            logger.warning("%s: %s", finding.subject, finding.text)
    if refused:
        sys.exit("\n".join(f"The worker does not start. {finding.subject}: {finding.text}" for finding in refused))


def checks_at_start(instance: Any = None, **_: Any) -> None:
    """Receive Celery's `celeryd_after_setup`. Only SystemExit gets through Celery's signals."""
    concurrency = max(int(instance.concurrency or 1), int(getattr(instance, "max_concurrency", None) or 1))
    refuse([check_file_limit(concurrency), *check_settings_redis()])


signals.celeryd_after_setup.connect(checks_at_start, weak=False)
