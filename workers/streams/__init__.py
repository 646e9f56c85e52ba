"""Answers on their way to those that read them as they come.

asked.py    which jobs' answers somebody reads
feeds.py    one answer's text, until Redis has it
writer.py   all feeds of a process, in one script call a tick

The readers are our client's (tasks/store/streams/). What comes from a provider in pieces is read before, in
http/pieces.py and providers/stream/.
"""

from __future__ import annotations

from .asked import asked
from .feeds import Feed
from .writer import Streams

__all__ = ["Feed", "Streams", "asked"]
