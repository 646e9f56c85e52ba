"""Celery's broker over Redis, with leases: kombu's wire format, nothing lost between taking and recording.

kombu/             our classes in the place of kombu's: transport, channel
triage.py          what becomes of a message that was just taken
leases.py          the messages that this process holds, and what is to be said of them (slots: limiter/leasing/)
commands.py        each script with its keys and arguments, and what becomes of the reply
scripts.py, lua/   the scripts
link.py            the two connections on which messages are taken; lookout.py: when to look
direct.py          one command at once
messages.py        a message's text
compression.py     how large a body is, unfolded
lanes.py           jobs that wait for the same limit
cancellations.py   cancelled jobs
"""

from .kombu.transport import SentinelTransport, SocketTransport, Transport

__all__ = ["SentinelTransport", "SocketTransport", "Transport"]
