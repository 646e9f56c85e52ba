"""`limiter`: the shared limiter beside `limits`, `pyrate-limiter` and a plain split, at one strict provider."""

from .benchmark import run

__all__ = ["run"]
