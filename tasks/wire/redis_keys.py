"""Every Redis key that Promptmill adds to Celery's own: its type, who owns it and how long it lives.

Celery and kombu own the queue lists (`prompts`, `prompts\\x06\\x163` ...), `unacked*`, `_kombu.binding.*` and the
results (`celery-task-meta-<id>`, a string and a channel of the same name). `global_keyprefix` of the broker
stands before the queue lists and before ours.

Until a key's owner deletes it, `WAITING_TTL_S` or `RECORD_TTL_S` is how long it lives after its last change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

NO_KEY = "pm:none"
"""A key that nobody writes. Deleting it is a write that a full Redis takes (tasks/redis/lua/when_full.lua)."""

QUEUE = "prompts"
"""The Celery queue of prompt jobs."""

PRIORITY_STEPS = (0, 3, 6, 9)
"""kombu keeps a list for each of them, and reads 0 first."""

PRIORITY_SEPARATOR = "\x06\x16"


def queue_list(queue: str, step: int, separator: str = PRIORITY_SEPARATOR) -> str:
    """kombu's list of a queue's messages of one priority step (`_q_for_pri`)."""
    return f"{queue}{separator}{step}" if step else queue


def queue_lists(queue: str, *, other_steps: Sequence[int] = (), other_separator: str = "") -> dict[str, int]:
    """All lists of a queue that workers read, most urgent first, with their steps.

    `other_*`: producers with `priority_steps` or `sep` of their own write lists of other names.
    """
    lists = [(step, queue_list(queue, step)) for step in PRIORITY_STEPS]
    lists += [(step, queue_list(queue, step, other_separator or PRIORITY_SEPARATOR)) for step in other_steps]
    return {name: step for step, name in sorted(dict.fromkeys(lists), key=lambda each: each[0])}


RECORD_TTL_S = 86_400
"""A job's record from the job's start, and a group from the end of its last job: a day, as results do by default. Both
live longer where results do: as long as those."""

WAITING_TTL_S = 1_209_600
"""The record of a job that waits, a group that is not complete, and the mark of a cancelled job: two weeks. A queue may
be long, or a limit small (requests a day)."""

RESULT_PREFIX = "celery-task-meta-"
"""Celery's result key and channel: this and the job's id (celery/backends/base.py)."""

GROUP_ID_PREFIX = "pmg-"
"""Marks a group id as one of ours, so that results of plain Celery groups cost nothing more."""


def is_group_id(group_id: str) -> bool:
    """Whether it is a group of ours. Of a stock producer, an id may be the name of another group's list or stream."""
    return group_id.startswith(GROUP_ID_PREFIX) and not group_id.endswith((":jobs", ":done"))


MODELS = "pm:models"
"""Sorted set, alias -> Redis time (s) when a worker last offered it; `*` = a provider takes any model, `PROVIDER/*` =
any of that provider's.
Written by each worker at start and hourly; members older than `MODELS_TTL_S` don't count."""

MODELS_TTL_S = 7_200

OFFERS_PREFIX = "pm:offers:"


def offers(queue: str) -> str:
    """Sorted set, alias -> when the offer ends (ms, Redis's clock): the models that living workers of the queue can
    call; `*` = one of them takes any model, `PROVIDER/*` = any of that provider's. Each worker's heartbeat renews its
    own offers. TTL three leases."""
    return OFFERS_PREFIX + queue


LEASES = "pm:leases"
"""Sorted set, delivery tag -> when its lease ends (ms, Redis's clock). A tag lives as long as its job runs.
The broker takes, renews and ends leases (workers/broker/); the messages themselves are in kombu's `unacked`."""

LEASE_TAG_PREFIX = "pm-"
"""Delivery tags under a lease begin with this; the rest is the fence, a number given once."""

FENCE = "pm:fence"
"""Counter: the last delivery tag given. It never falls below Redis's clock in microseconds, so that no two claims share
a tag even after a Redis that lost its data."""

REAPER = "pm:reaper"
"""Hash: `at`, when leases were last checked, and `grace_until`, before when none is ended (ms)."""

CANCELLED = "pm:cancelled"
"""Sorted set, job id -> when it was cancelled (ms). Members are kept for `WAITING_TTL_S`, or until the id is submitted
again, and whoever takes the message of such a job is told."""

SWEEP_TTL_S = 3_600

SWEEP = "pm:sweep"
"""Hash: which worker takes the messages of cancelled jobs out of the delayed ones (`owner`, `at`, `began`), and when
the last pass began that is `done` (ms). TTL `SWEEP_TTL_S`."""

SUSPECTED = "pm:suspected"
"""Sorted set, job id or delivery tag -> when the mark ends (ms): jobs of which Redis has lost a lease or a result, and
whose next call is not the first. The broker makes a mark after such a loss, and deletes it with the message that it
flags. TTL `RECORD_TTL_S`."""

FORGOTTEN = "pm:forgotten"
"""Sorted set, job id -> when it was forgotten (ms): jobs that have ended, whose message was not acknowledged yet when a
client deleted result and record (`forget`). Should the worker die before it acknowledges, the message is not to come
back: nothing would tell that its call is paid for. The broker deletes a mark with the message, or after `RECORD_TTL_S`;
submitting the id again deletes it too."""

DEAD = "pm:dead"
"""List of JSON texts, newest first: messages that no worker could do. Kept until purged, at most `DEAD_LIMIT`."""

DEAD_LIMIT = 10_000

DEAD_COUNTS = "pm:dead:counts"
"""Hash: reason -> how many messages were ever buried for it."""

COUNTS = "pm:counts"
"""Hash: `<event>:<label>` -> how often it has happened, in all workers (workers/telemetry/counts.py). Kept for good."""

NOTICES = "pm:notices"
"""Hash: `<event>:<subject>` -> JSON of a text and `until_ms`: why jobs wait, as their worker tells people
(workers/telemetry/notices.py). TTL `NOTICES_TTL_S` after the last."""

NOTICES_TTL_S = 86_400

DELAYED_PREFIX = "pm:delayed:"


def delayed(queue: str) -> str:
    """Sorted set, message -> when it is due (ms): the queue's messages with an ETA or countdown. The broker owns it."""
    return DELAYED_PREFIX + queue


def job(job_id: str) -> str:
    """Hash: the submitted job's record (state, model, tenant, group, priority, times, `cancel`: when it was
    cancelled, `ending`: since when, ms, a worker is recording that). TTL `WAITING_TTL_S`
    (and its delay) until the job starts, then `RECORD_TTL_S`."""
    return f"pm:job:{job_id}"


CLAIM_MS = 10_000
"""For so long a worker may be recording how a job ended that did not run: then it is taken for dead."""


def group(group_id: str) -> str:
    """Hash: `submitted`, `total` (-1 until the group is closed), and a counter for each status. TTL `WAITING_TTL_S`,
    then `RECORD_TTL_S` from the end of its last job; the same for the next two."""
    return f"pm:group:{group_id}"


def group_jobs(group_id: str) -> str:
    """List: ids of the group's jobs in the order of submission."""
    return f"pm:group:{group_id}:jobs"


def group_done(group_id: str) -> str:
    """Stream: one entry `{id}` for each job that has ended, in that order."""
    return f"pm:group:{group_id}:done"


def result(job_id: str) -> str:
    """String and channel: Celery's result record of the job."""
    return RESULT_PREFIX + job_id


ANSWERS = "pm:answers"
"""Sorted set, `<digest> <bytes>` of a stored answer -> when it was stored (ms): the order in which they make room
(workers/answers/). It and the next live as long as the answer that ends last."""

ANSWERS_END = "pm:answers:end"
"""Sorted set, the same members -> when the answer ends (ms)."""

ANSWERS_STATE = "pm:answers:state"
"""Hash: `bytes` of the answers in `ANSWERS`, and `cleared`, how often answers were cleared by hand. Kept for good."""

ANSWER_INDEXES = (ANSWERS, ANSWERS_END, ANSWERS_STATE)
"""In the order in which the scripts of workers/answers/ take them."""

ANSWER_PREFIX = "pm:answer:"


def answer(digest: str) -> str:
    """String: when an answer was stored (ms), and the answer. `digest` is `<of the tenant>:<of the prompt>`. It lives
    for the `cache_ttl_s` of its job."""
    return ANSWER_PREFIX + digest


STREAMS_ASKED = "pm:streams:asked"
"""Sorted set, job id -> when somebody asked to read its answer as it comes (ms): jobs that were submitted without
`stream`. Whoever takes the message of such a job is told. The stream's end deletes its member; others count for
`WAITING_TTL_S`."""

STREAMS_CHANNEL = "pm:streams"
"""Channel: the id of each job that enters `STREAMS_ASKED`."""

STREAM_PREFIX = "pm:stream:"


def stream(job_id: str) -> str:
    """Stream, and channel of the same entries: an answer as it comes (workers/streams/lua/write.lua). TTL
    `RECORD_TTL_S` after a call's begin, then `PROMPTMILL_STREAM__KEEP_S` after the answer's end."""
    return STREAM_PREFIX + job_id


FLIGHT_TTL_S = 60
"""How long what has become of a call under way is known to the equal prompts that were submitted before its end."""


FLIGHT_PREFIX = "pm:flight:"


def flight(digest: str) -> str:
    """Hash: a call under way for equal prompts: which job leads (`leader`, `token`, `rank`, `ends`, `parked`), when
    those that wait for it are due (`due`, `at:<score>:<queue>`), and what has become of the last (`landed`,
    `landed_at`, `landed_token`). It lives as long as somebody may wait for it, and `FLIGHT_TTL_S`."""
    return FLIGHT_PREFIX + digest


LIMITERS = "pm:limiters"
"""Sorted set, `<provider>:<model>:<fingerprint>` of a limiter as JSON list -> Redis time (s) when a process last
opened it. Written by the workers; members older than `LIMITER_TTL_S` don't count and are removed by them."""

LIMITER_PAUSES = "pm:limiter:pauses"
"""Channel: `<limiter> <epoch> <microseconds left>`, when a provider's 429 has stopped everybody."""

LIMITER_TTL_S = 172_800

LIMITER_PROCESS_TTL_S = 1_200

LIMITER_WINDOW_TTL_S = 300


class LimiterKeys(NamedTuple):
    """The keys of one limiter, in the order in which its scripts take them. TTL `LIMITER_TTL_S` after the last use,
    but `LIMITER_PROCESS_TTL_S` for `processes` and `replies`, and `LIMITER_WINDOW_TTL_S` for the windows."""

    clock: str
    """Hash: the limiters' own time; shared by the model's limiters."""
    state: str
    """Hash: the schedule, the pause, counters."""
    processes: str
    """Hash, process -> when its lease ends, when it was seen, what it waits for and holds, its virtual time."""
    replies: str
    """Hash, process -> its last reply, for when it was lost."""
    days: str
    """Hash, day -> requests sent on it."""
    window: str
    """Hash, `<dimension>:<bin>` -> tokens that the slots of that time took (window.lua). The name says how many ms a
    bin lasts: processes of a version that counts otherwise keep their own."""
    organisation: str
    """Hash: what is sold of the limit above the keys, by bins of time (calendar.lua); its counters."""
    organisation_window: str
    """Hash: as `window`, of the limit above the keys."""


def limiter(provider: str, model: str, fingerprint: str) -> LimiterKeys:
    """Owned by workers/limiter/. The model's hash tag keeps them, and the limit above all keys of the model, on one
    cluster node."""
    tag = f"{{rl:{provider}:{model}}}"
    own = f"{tag}:{fingerprint}"
    return LimiterKeys(
        clock=f"{tag}:clock",
        state=f"{own}:state",
        processes=f"{own}:processes",
        replies=f"{own}:replies",
        days=f"{own}:days",
        window=f"{own}:window:125",
        organisation=f"{tag}:organisation",
        organisation_window=f"{tag}:organisation:window:125",
    )


BREAKER_CHANNEL = "pm:breaker:changes"
"""Channel: a JSON map: a breaker that has opened, closed or been tried, or `watch`, the name of one that may open."""

BREAKERS = "{pm:breaker}:open"
"""Hash, `["<provider>", "<model>"]` -> JSON of a breaker that is open (workers/breaker/lua/breaker.lua). TTL
`BREAKER_TTL_S` after the last change."""

BREAKER_COUNTS = "{pm:breaker}:opened"
"""Hash, `["<provider>", "<model>"]` -> how often its breaker has opened. TTL `BREAKER_COUNTS_TTL_S` after the last."""

BREAKER_TTL_S = 86_400

BREAKER_COUNTS_TTL_S = 2_592_000

BREAKER_WINDOW_TTL_S = 3_600
"""The longest window that can be set."""


class BreakerKeys(NamedTuple):
    """The keys of one breaker, in the order in which its scripts take them. TTL `BREAKER_WINDOW_TTL_S` after the last
    failure, but for the first and the last."""

    open: str
    """`BREAKERS`."""
    answered_failures: str
    """Sorted set, job id -> when it has failed (ms): jobs to which the provider has answered with a failure."""
    silent_failures: str
    """Sorted set, job id -> when it has failed (ms): jobs whose call broke or hung."""
    witnesses: str
    """Sorted set, process -> when it last met such a call (ms)."""
    answers: str
    """Hash, second -> calls that were answered in it, in the processes that have reported."""
    opened: str
    """`BREAKER_COUNTS`."""


def breaker(provider: str, model: str) -> BreakerKeys:
    """Owned by workers/breaker/. One hash tag for all, because the first holds every breaker that is open."""
    own = f"{{pm:breaker}}:{provider}:{model}"
    return BreakerKeys(
        open=BREAKERS,
        answered_failures=f"{own}:answered-failures",
        silent_failures=f"{own}:silent-failures",
        witnesses=f"{own}:witnesses",
        answers=f"{own}:answers",
        opened=BREAKER_COUNTS,
    )
