"""For all tests: hypothesis judges the code, not the machine.

On a fresh machine its first use of text takes more than a second (a table of Unicode), which its health check would
call a slow test; and a busy machine is no reason to fail. `make check` tries a quarter of the examples.
"""

from hypothesis import HealthCheck, settings

settings.register_profile("promptmill", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("promptmill"), max_examples=25)
settings.load_profile("promptmill")
