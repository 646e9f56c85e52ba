"""The place where jobs are kept.

job_store.py      what `PromptQueue` needs of it
redis_store.py    jobs kept in Redis, as one event loop sees them: results, cancelling
submitting.py     jobs on their way into the queue
groups.py         a group as Redis has it
terms.py          what a client has to know of Redis before it writes there
place.py          which Redis, how patiently, and the names of the keys
subscriptions.py  one pub/sub connection for all who listen
waiting.py        waiting for results
streams/          answers, read as they come
group_reader.py   a group's results in the order of completion, each once
batching.py       many small requests, sent together
patience.py       how long readers ride out an outage
lua/              submit, cancel, close_group, read_results
"""
