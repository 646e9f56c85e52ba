"""Is this 200 an answer? Of the endpoints beside chats and embeddings, checked as `answers.py` checks those. No I/O.

responses.py     the Responses API
completions.py   text completions
moderations.py   moderations
"""
