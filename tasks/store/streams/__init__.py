"""Reading answers as they come, from what workers/streams/ has written. What a caller holds is in tasks/streams.py.

entries.py   what workers write, as one event loop hears of it: one connection for all its readers
reader.py    one reader: no gap, no repeat, and no text that is no part of the answer
"""

from __future__ import annotations

from .reader import Streams

__all__ = ["Streams"]
