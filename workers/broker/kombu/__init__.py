"""Our classes in the place of kombu's.

transport.py   the transports, one for each kind of URL
channel.py     takes and acknowledges in batches
qos.py         counts what the consumer holds
poller.py      serves the connections on which messages are taken
"""
