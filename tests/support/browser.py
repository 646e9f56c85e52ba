"""A headless Chromium for the tests that look at pages as a person does: `make browser` installs one.

`python -m tests.support.browser` says which one the tests use.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["NoBrowser", "is_required", "open_browser"]

COMMANDS = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
)


class NoBrowser(Exception):
    """None is installed, or it does not start. The text says what to do."""


def is_required() -> bool:
    """Whether a test must fail where there is no browser, as `.ci/run` has it."""
    return os.environ.get("PROMPTMILL_TEST_BROWSER") == "required"


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """The installed one, or else the one that `playwright install` has brought. Raises NoBrowser."""
    from playwright.sync_api import Error, sync_playwright

    installed = next(filter(None, map(shutil.which, COMMANDS)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=installed)
        except Error as error:
            first_line = error.message.strip().splitlines()[0]
            raise NoBrowser(f"No Chromium to open pages with: run `make browser`. {first_line}") from None
        with browser:
            yield browser


def main() -> int:
    try:
        with open_browser() as browser:
            print(f"Pages are opened with Chromium {browser.version}")
    except NoBrowser as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
