"""The processes that a run needs beside itself.

services.py       which of them, in which order
redis_server.py   a Redis of the run's own
simulation.py     the simulated provider, and a catalogue that sends everything to it
fleet.py          the workers
environ.py        the environment that they start in
lifeline.py       none of them outlives the run (lifeline.sh)
"""
