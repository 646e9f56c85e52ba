"""The schedule in Redis from which all processes lease.

schedule.py   what is said to the schedule in Redis, and what it answers
scripts.py    the Lua scripts: acquire.lua and pause.lua
link.py       script calls of one turn of the loop travel together
channel.py    hearing of pauses as they begin
clock.py      Redis's time on the monotonic clock
"""
