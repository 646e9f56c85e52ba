"""A mirror of the code, and four rooms of its own.

tasks/ config/ workers/   one part each, with real servers and without worker processes
project/                  the docs, the names, the promises: the repository as a whole
sweep/                    no setting and no option is accepted and ignored
system/                   real worker processes, faults and signals
soak/                     long fault runs, by hand: `python -m tests.soak`
support/                  what they share: Redis, waiting, ports, a proxy, virtual time, raw bytes
"""
