"""Servers in processes of their own: where they listen, and whether."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from typing import Any

__all__ = ["listens", "started"]


def started(command: Sequence[str], **options: Any) -> tuple[subprocess.Popen[str], str]:
    """A command of ours that takes `--ready-fd`, and its URL, when it listens. `options` are those of `Popen`."""
    told, ready = os.pipe()
    try:
        process = subprocess.Popen(
            [*command, "--ready-fd", str(ready)], stdout=subprocess.PIPE, text=True, pass_fds=(ready,), **options
        )
    except BaseException:
        os.close(told)
        raise
    finally:
        os.close(ready)
    with os.fdopen(told) as pipe:
        url = pipe.read()
    if not url:
        process.kill()
        raise AssertionError(f"{command} ended before it listened: {process.communicate()}")
    return process, url


def listens(port: int) -> bool:
    """Whether a connection to this port of the machine can be made."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
