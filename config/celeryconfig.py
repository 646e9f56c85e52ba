"""Celery's settings, as Promptmill needs them: `app.config_from_object("config.celeryconfig")`.

Every name here is Celery's own (docs.celeryq.dev, "Configuration and defaults") except `worker_lifespans`
(workers/pool/task_pool.py) and `result_compress_from_bytes` (workers/results/backend.py). Values that a deployment
changes come from `config.settings`.
"""

from __future__ import annotations

from tasks.redis.address import Address as _Address
from tasks.wire import redis_keys as _redis_keys

from .celery_urls import broker_of as _broker_of
from .celery_urls import result_backend_of as _result_backend_of
from .settings import get_settings as _get_settings

_settings = _get_settings()
_broker = _broker_of(_Address.of(_settings.broker))
_results = _result_backend_of(_Address.of(_settings.results))

SOCKET_TIMEOUT_S = 10.0
"""No answer from Redis for so long means that the connection is dead. Without it, a half-open link hangs a worker."""

# -- broker ------------------------------------------------------------------------------------------------------------
broker_url = _broker.url
broker_transport = _broker.name
broker_user = _broker.username
broker_password = _broker.password
broker_connection_retry_on_startup = True
broker_channel_error_retry = True  # nor does a Redis that refuses a command end it: full, read-only, loading
broker_connection_max_retries = None  # a worker waits for its Redis for as long as it takes
broker_transport_options = {
    "global_keyprefix": _settings.key_prefix,
    "priority_steps": list(_redis_keys.PRIORITY_STEPS),
    "queue_order_strategy": "priority",
    "other_steps": list(_settings.producers.priority_steps or ()),
    "other_separator": _settings.producers.separator or "",
    # Where results are in the same Redis, storing one renews the record (workers/results/lua/store.lua); elsewhere a
    # day is added for the time that the job takes.
    "record_ttl_s": max(_settings.result_expires_s, _redis_keys.RECORD_TTL_S)
    + (0 if _settings.results == _settings.broker else _redis_keys.RECORD_TTL_S),
    "socket_timeout": SOCKET_TIMEOUT_S,
    "socket_connect_timeout": 5.0,
    "socket_keepalive": True,
    "loop_patience_s": _settings.loop_patience_s,
    **_broker.options,
}

# -- results -----------------------------------------------------------------------------------------------------------
result_backend = f"{_results.name}+{_results.url}"
result_backend_transport_options = _results.options
result_backend_thread_safe = True  # one backend for the hub, the loop and their threads
result_expires = _settings.result_expires_s
result_compress_from_bytes = _settings.result_compress_from_bytes
redis_socket_timeout = SOCKET_TIMEOUT_S
redis_socket_connect_timeout = 5.0
redis_socket_keepalive = not _results.url.startswith("socket:")  # which has none

# -- tasks -------------------------------------------------------------------------------------------------------------
imports = ("workers.celery.tasks", "workers.checks")
task_default_queue = "prompts"
task_acks_late = True  # a message is taken off the queue when its result is stored, not before
task_serializer = "json"
result_serializer = "json"
accept_content = ["json"]
enable_utc = True
timezone = "UTC"

# -- worker ------------------------------------------------------------------------------------------------------------
worker_pool = "workers.pool:TaskPool"
worker_consumer = "workers.celery.consumer:Consumer"
worker_lifespans = ("workers.results:lifespan", "workers.celery.runtime:lifespan")
worker_concurrency = _settings.concurrency
worker_prefetch_multiplier = 1  # take no more than can start: prompts take seconds, and other workers may be idle
worker_cancel_long_running_tasks_on_connection_loss = False  # an answer that is being paid for is waited for
worker_enable_prefetch_count_reduction = False  # the broker counts the jobs that go on through a reconnect itself
worker_hijack_root_logger = False
