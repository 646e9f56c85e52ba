"""The slots that this process has leased, and how it gets more. (The leases of messages: broker/leases.py.)

leases.py        what is leased: when it asks for more slots, what it reports, what it hears
slots.py         the slots that are out, and the timer of the first
settlements.py   what is settled, and has yet to be reported
caller.py        one call to the schedule at a time, and again what had no answer
outage.py        what is done while Redis is away
degraded.py      slots without Redis: a share of the last known pace
"""
