"""How long a job has for its call.

flex.py      by the provider's flex tier, for less, where there is time
timeouts.py  a call that takes far longer than the latest ones is given up
latest.py    how long the latest ones took
"""
