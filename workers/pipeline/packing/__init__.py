"""Calls that several embeddings jobs share, and jobs that take several calls.

group.py     the inputs that wait and may share calls; when a call is made for them: start reading here
member.py    one job's inputs, until each has its vector
pack.py      one such call: which inputs of the group it takes, and what becomes of them
sift.py      the inputs for which a call of many fails
caps.py      how much one call takes, stated and learned
flow.py      whether inputs come in a stream, or now and then
inputs.py    what stands in a job's `input`, and which jobs may share a call
too_long.py  inputs that are longer than a model takes, cut or split
tokens.py    exact counts of tokens, for models with a tokenizer
shares.py    what a call took, shared out
"""
