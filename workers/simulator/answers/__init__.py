"""What the simulated provider answers with, without a clock and without I/O.

replies.py       OpenAI's answers and errors
messages_api.py  Anthropic's
responses_api.py OpenAI's Responses API
small_apis.py    completions and moderations
structured.py    which answer a request for structured output wants
objects.py       an object that fits a JSON Schema
broken_json.py   JSON as models break it
"""
