"""Redis behind Sentinel: who the master is, asked again for every connection, and pools whose connections ask.

The pools are redis-py's. Finding the master is ours, because redis-py waits for a sentinel that is frozen as long as
for Redis, believes one that is behind the others, and says the same of a wrong name as of a wrong address. So is
hearing that there is another one (`master_watch.py`).

sentinels.py   which sentinels, of which master; why none could say where it is
pools.py       connections that ask for the master, and pools of them
search.py      whom to ask, and what an answer means
listener.py    connections to the sentinels that are kept, for news of a failover
"""

from .pools import AsyncMasterPool, BlockingMasterPool, MasterConnection, MasterPool
from .sentinels import MasterNotFound, Sentinels

__all__ = [
    "AsyncMasterPool",
    "BlockingMasterPool",
    "MasterConnection",
    "MasterNotFound",
    "MasterPool",
    "Sentinels",
]
