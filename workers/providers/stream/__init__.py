"""Answers that come in pieces. No I/O.

sse.py      bytes to events
chunks.py   OpenAI's chunks to the chat completion that they are pieces of
"""
