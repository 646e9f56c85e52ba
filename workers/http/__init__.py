"""HTTP to the providers: the border at which foreign errors become ours.

session.py    one pooled session for each connection profile, owned by the worker's lifecycle
exchange.py   one POST over a pooled connection
pieces.py     an answer that comes in pieces
timeouts.py   one timer for all calls of a duration
unstored.py   how many bytes of answers may be in memory, unstored, at a time
"""
