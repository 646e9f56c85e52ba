"""Which model a job asks first, and which when that one can't answer.

chain.py            the models that a job may be answered by, in order
router.py           which model comes first, by the catalogue's routes, and which after it
choice.py           how a route chooses: rules, the cheapest, the fastest
prices.py           what a call of each target is likely to cost
speeds.py           how fast models answer, as this process has seen it
reach.py            which models jobs may get to, and so which rungs they may need
fallback_policy.py  when the next model is asked: decisions are values
"""
