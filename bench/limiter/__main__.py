"""`python -m bench.limiter`."""

from .process import main

main()
