"""The life of one prompt, from a message to its result; no Celery and no Redis.

pipeline.py      the ladder, and what comes of a job's way down: start reading here
trip.py          a job under way; the shape that decides its rungs
at_hand.py       answers that are in memory, given before a job has a place
rungs/           one worry each
routing/         which model a job asks first, and which when that one can't answer
limits.py        the limit that all workers share, as the pipeline sees it
flex_policy.py   which jobs may wait for a provider's flex tier
packing/         calls that several embeddings jobs share, and jobs that take several calls
vectors.py       vectors as whoever reads the result can read them
retry_policy.py  whether and when to try again: decisions are values
outages.py       how a job ends whose provider is out
offers.py        which models this worker can call, and whether another can
record_limit.py  how large a result's record may be
outcome.py       the job's result
costs.py         what its calls cost
"""
