"""The schedule in Redis from which all processes lease.

schedule.py   what is said to the schedule in Redis, and what it answers
scripts.py    the Lua scripts: acquire.lua and pause.lua
clock.py      Redis's time on the monotonic clock
"""
