"""Which jobs may wait for a provider's flex tier."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tasks.wire.kinds import KINDS

if TYPE_CHECKING:
    from ..prompt.job import PromptJob

__all__ = ["FlexPolicy", "is_patient"]


class FlexPolicy(NamedTuple):
    """See `config.settings.Flex`."""

    min_deadline_s: float = 1_800.0
    patience_s: float = 86_400.0

    def may_wait(self, job: PromptJob) -> bool:
        """Whether a job has asked for no hurry, whatever time is left of it now."""
        options = job.options
        if not is_patient(job):
            return False
        if options.deadline_at is None:
            return True
        if options.submitted_at is None:
            return False  # its deadline begins anew each time it comes back, so it would never come near
        return options.priority == "bulk" or options.deadline_at - options.submitted_at >= self.min_deadline_s


def is_patient(job: PromptJob) -> bool:
    """Whether it is bulk, or has a deadline that may be far, and leaves the tier to us."""
    options = job.options
    has_time = options.priority == "bulk" or options.deadline_at is not None
    return has_time and KINDS[job.kind].has_flex and "service_tier" not in job.body
