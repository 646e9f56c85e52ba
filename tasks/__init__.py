"""The thin client of Promptmill: submit prompt jobs to the queue and read their results.

Needs `redis` and the standard library; the engine (`workers`) is not installed into a web app.
"""

from . import errors
from .blocking import SyncGroup, SyncJob, SyncQueue
from .client import PromptQueue
from .errors import *  # noqa: F403 - its __all__ is part of ours
from .jobs import Group, Job, JobStatus
from .results import Attempt, JobError, PromptResult, Usage
from .store.job_store import GroupProgress
from .streams import Piece, StreamEvent
from .wire.kinds import TASK_NAMES
from .wire.vocabulary import Priority, Status

__all__ = [
    "TASK_NAMES",
    "Attempt",
    "Group",
    "GroupProgress",
    "Job",
    "JobError",
    "JobStatus",
    "Piece",
    "Priority",
    "PromptQueue",
    "PromptResult",
    "Status",
    "StreamEvent",
    "SyncGroup",
    "SyncJob",
    "SyncQueue",
    "Usage",
]
__all__ += errors.__all__
