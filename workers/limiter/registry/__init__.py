"""All limiters of a process, and which of them a request goes through.

registry.py   admits requests: which key one goes with: start reading here
limiters.py   the limiters that there are: opened when asked for, closed when idle
naming.py     under which name a model's limiters go
listing.py    says in Redis which limiters there are
"""

from .limiters import fingerprint
from .registry import LimiterRegistry

__all__ = ["LimiterRegistry", "fingerprint"]
