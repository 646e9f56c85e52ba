"""Answers that come in pieces. No I/O.

sse.py               bytes to events
chunks.py            OpenAI's chunks to the completion that they are pieces of
response_events.py   the Responses API's events to the response that they build
"""
