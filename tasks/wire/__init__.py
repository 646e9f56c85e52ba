"""What client and worker agree on. No I/O.

vocabulary.py   the words that stand in Redis, for Python and Lua: states, priorities
kinds.py        the kinds of work: tasks, endpoints, prompts
options.py      every option of a job, once: name, check, documentation, who reads it
texts.py        the text in an answer of each kind
usage.py        what an answer says that the provider counted, in every spelling
vectors.py      embeddings: the inputs of a request, and packed vectors
schema.py       the option `schema`, as a chat's body carries it
json_text.py    JSON that every reader takes: NaN, surrogates, depth
request.py      from the arguments of `submit` to a checked job
message.py      the messages that we put into Redis, in Celery's form
record.py       Celery's result record, read as a `PromptResult`
redis_keys.py   every key that Promptmill adds to Celery's own
"""
