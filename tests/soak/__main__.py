"""The long fault runs: `make soak`, or `python -m tests.soak [kills|limiter|failover|chaos] [options]`.

Without a name all run, one after the other, with their usual sizes. Exit code 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import sys

from . import chaos, failover, kill_loop, limiter

SOAKS = {"kills": kill_loop, "limiter": limiter, "failover": failover, "chaos": chaos}


def main() -> int:
    options = _options(sys.argv[1:])
    if options.soak is not None:
        return 0 if SOAKS[options.soak].run(options) else 1
    kept = [soak.run(_options([name])) for name, soak in SOAKS.items()]
    return 0 if all(kept) else 1


def _options(arguments: list[str]) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__, formatter_class=raw)
    names = parser.add_subparsers(dest="soak")
    for name, soak in SOAKS.items():
        assert soak.__doc__ is not None, "a soak says what it tries"
        soak.add_options(names.add_parser(name, description=soak.__doc__, formatter_class=raw))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
