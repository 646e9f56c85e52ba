"""The place where jobs are kept.

job_store.py      what `PromptQueue` needs of it
redis_store.py    jobs kept in Redis, as one event loop sees them
waiting.py        one subscription for all who wait for results
group_reader.py   a group's results in the order of completion, each once
batching.py       many small requests, sent together
patience.py       how long readers ride out an outage
lua/              submit, cancel, close_group, read_results
"""
