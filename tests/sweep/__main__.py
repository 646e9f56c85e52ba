"""`python -m tests.sweep [KIND:NAME ...]`: the tests of each name have to fail while the code ignores it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .marks import claims

MUTED = Path(__file__).with_name("muted")
TIMEOUT_S = 600
FAILED = 1
"""pytest's exit code for "tests ran, and some failed"."""


def main(wanted: list[str]) -> int:
    unproven = []
    for (kind, name), tests in sorted(claims().items()):
        muted = f"{kind}:{name}"
        if wanted and muted not in wanted:
            continue
        is_proven = _fails_muted(muted, sorted(tests))
        print(f"{'proven' if is_proven else 'UNPROVEN'}  {muted}", flush=True)
        if not is_proven:
            unproven.append(muted)
    print(f"{len(unproven)} unproven" + "".join(f"\n  {muted}" for muted in unproven))
    return 1 if unproven else 0


def _fails_muted(muted: str, tests: list[str]) -> bool:
    path = os.pathsep.join(filter(None, (str(MUTED), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environ = {**os.environ, "MUTED": muted, "PYTHONPATH": path}
    ended = subprocess.run(command, env=environ, capture_output=True, timeout=TIMEOUT_S, check=False)
    return ended.returncode == FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
