"""Requests that wait for their turn. No Redis.

wait_queue.py   who waits, and whose turn it is
dispatch.py     who is sent when a slot is due
forecast.py     how long a request would wait, and whether that is too long
free_flow.py    who goes at once, where no limit is known
"""
