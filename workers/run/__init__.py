"""`promptmill run`: every row of a file through the queue, and one row of output for each.

In the order in which a run meets them:

- `command` is the face: options in, exit code out; `session` is the order of things.
- `input_file` reads lines, `rows` says what a line asks for, `custom_ids` remembers who asked.
- `state` locks the output, `output` appends to it and knows which rows an earlier run has finished.
- `redis_server`, `simulation` and `fleet` are the processes; `lifeline` ends them, whatever happens to us.
- `conveyor` moves rows into the queue and results out of it, a window of them at a time.
- `tally`, `latency`, `progress` and `summary` count and show.
"""
