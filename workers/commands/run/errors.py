"""What ends a run, as one tree.

::

    RunError                   the run can't go on; finished rows are in the output       (exit code 1)
    └── UnusableInput          the run can't start as it was asked to                     (exit code 2)
"""

from __future__ import annotations

from typing import ClassVar

__all__ = ["RunError", "UnusableInput"]


class RunError(Exception):
    """The run can't go on. The text says why and what to do; it never repeats a prompt or a password."""

    exit_code: ClassVar[int] = 1
    next_step: ClassVar[str] = "Run the same command again to continue."


class UnusableInput(RunError):
    """A file, an option or a key can't be used as it is. Nothing was enqueued because of it."""

    exit_code: ClassVar[int] = 2
    next_step: ClassVar[str] = ""  # its text names it
