"""Answers that have to fit a JSON Schema; no I/O. `pipeline/rungs/schema.py` acts on it.

form.py       how a job's schema travels to a provider, and the bodies of further calls
repair.py     JSON whose syntax alone is broken, without adding a value
validator.py  what is wrong with an answer, in words that quote none of it
reading.py    the choices of an answer, read, repaired and validated
steps.py      what follows an answer that does not fit
"""
