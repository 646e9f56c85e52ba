"""Benchmarks: `python -m bench`, or `make bench`. docs/performance.md explains the method and keeps the figures."""
