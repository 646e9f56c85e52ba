"""Answers that serve equal prompts again, and calls that equal prompts share.

digest.py    which prompts are equal
known.py     what is known of a prompt without a call: its answer, or how the call of an equal one failed; as bytes
memory.py    the answers of this process, bounded in bytes
answers.py   what the pipeline holds: look up, lead, say what has become of it
courier.py   look-ups and ends of calls travel together; nothing here waits for a Redis that is away
scripts.py   the Lua scripts
tally.py     what is counted of all this
stock.py     all answers from outside: how many there are, and how they are deleted
"""

from .answers import Answers, Flight, Follow
from .digest import Digests, tenant_digest
from .known import Known

__all__ = ["Answers", "Digests", "Flight", "Follow", "Known", "tenant_digest"]
