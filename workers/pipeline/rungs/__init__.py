"""The rungs of the ladder, one worry and one file each, outermost first.

deadline.py      the job's own limit
fallbacks.py     the next model, where another one may cure what this one can't
elsewhere.py     what only this worker can't do is left to another
input_length.py  inputs that are longer than the model takes
answers.py       no second call for what has been answered, or is being answered for an equal prompt
schema.py        an answer that has to fit a JSON Schema does
record_size.py   an answer that no record holds is refused before it is paid for
breaker.py       not while the provider is out
retry.py         again, and when
packing.py       embeddings of many jobs in one call, and of one job in several
admission.py     leave to send, from the limit that all workers share, which hears of a 429 here
patience/        by which tier a job is sent, and when a call is given up
call.py          at the bottom: one counted call, through codec, HTTP and codec
"""
