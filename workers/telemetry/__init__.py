"""What a worker says of itself.

logs.py          log lines, for people or as JSON
failure_log.py   a line and a count for each failed job
counts.py        counters of rare events, for `promptmill metrics`
notices.py       why jobs wait, for whoever waits for them
terminal.py      no control character of others reaches a terminal or begins a line
"""
