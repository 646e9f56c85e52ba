"""What a run keeps beside its output until it has finished: `OUTPUT.promptmill/`."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import Self
from uuid import UUID, uuid4, uuid5

from ..errors import UnusableInput

__all__ = ["RunState"]


class RunState:
    """A directory with the run's lock, its id, the logs of its processes and the embedded Redis's data.

    It stays after an interruption or a crash: with the same id, rows get the same job ids again, so what Redis
    still holds is collected instead of being paid for twice.
    """

    def __init__(self, directory: Path, *, lock: int) -> None:
        self.directory = directory
        self._lock = lock
        self.is_new = not self._id_file.exists()
        self._id = self._read_id()
        self.logs.mkdir(exist_ok=True)

    @classmethod
    def open(cls, output: Path) -> Self:
        """Make or find the directory and lock it. Raises `UnusableInput` if another run has it."""
        directory = output.with_name(f"{output.name}.promptmill")
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            return cls(directory, lock=_locked(directory, output))
        except OSError as error:
            raise UnusableInput(
                f"Can't write beside the output {output}: {error.strerror} ({error.filename or directory}). "
                "Choose another place with -o."
            ) from None

    @property
    def redis(self) -> Path:
        return self.directory / "redis"

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def catalog(self) -> Path:
        return self.directory / "catalog.toml"

    def job_id(self, *, custom_id: str, digest: str) -> str:
        """The same id for the same row of the same run, wherever it stands in the input."""
        return str(uuid5(self._id, f"{digest}:{custom_id}"))

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def close(self, *, finished: bool) -> None:
        """Give the lock back. A run that has finished leaves nothing behind."""
        if finished:
            shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._lock)

    @property
    def _id_file(self) -> Path:
        return self.directory / "run-id"

    def _read_id(self) -> UUID:
        if self.is_new:
            self._id_file.write_text(f"{uuid4()}\n")
        try:
            return UUID(self._id_file.read_text().strip())
        except ValueError:
            raise UnusableInput(f"{self._id_file} is damaged. Remove {self.directory} and start again.") from None


def _locked(directory: Path, output: Path) -> int:
    while True:
        directory.mkdir(mode=0o700, exist_ok=True)
        path = directory / "lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UnusableInput(
                f"Another `promptmill run` is writing {output}. Wait for it, or choose another -o."
            ) from None
        if _is_current(path, lock):
            return lock
        # A run that finished has removed the directory between our open and our lock.
        os.close(lock)


def _is_current(path: Path, lock: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(lock))
    except FileNotFoundError:
        return False
