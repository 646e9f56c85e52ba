"""What answers say of limits: how large they are, and when nobody may send.

headers.py     the limits that an answer's rate headers state
learned.py     limits that answers have stated
pauses.py      since which 429, and until when, nobody may send
long_waits.py  what people read where a provider asks for more than a pause
"""
