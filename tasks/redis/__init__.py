"""Redis as a process reaches it.

address.py        where a Redis is, in one URL of any kind; makes every client and pool
connection.py     one event loop's connections, and the border at which Redis's errors become ours
script.py         Lua scripts and what they include; lua/ is what all rooms share
sentinel.py       Redis behind Sentinel
master_watch.py   who the master is, as far as this process has heard
broken_link.py    a connection that breaks in the middle of a call
cancellation.py   time-outs and cancellations that don't get lost on the way
clock.py          a clock that nobody sets
"""
