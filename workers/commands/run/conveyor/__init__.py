"""Rows into the queue, results out of it: a window of unfinished jobs at a time, whatever the file's size.

conveyor.py     all of it together, and the results as they come
feed.py         rows into the queue
submitting.py   one call, or row by row; patient while Redis is away or full
shelf.py        which jobs Redis knows already
losses.py       jobs that Redis has lost, or an interrupted run has left: followed one by one
ledger.py       which jobs are unfinished; their rows of output, on the disk before Redis forgets them
"""

from .conveyor import Conveyor
from .feed import Window

__all__ = ["Conveyor", "Window"]
