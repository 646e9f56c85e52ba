"""A provider's answer that comes in pieces, as server-sent events. No I/O. On its way to readers: workers/streams/.

sse.py               bytes to events
chunks.py            OpenAI's chunks to the completion that they are pieces of
response_events.py   the Responses API's events to the response that they build
"""
