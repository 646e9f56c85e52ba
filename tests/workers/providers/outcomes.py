"""What tests of codecs hold every reading of a response to."""

from __future__ import annotations

from collections.abc import Callable

from tasks.errors import ERROR_CODES
from workers.prompt.failure import Failure
from workers.providers import Answer

__all__ = ["assert_answer_or_named_failure"]


def assert_answer_or_named_failure(read: Callable[[], Answer], *, status: int) -> None:
    try:
        found = read()
    except Failure as caught:
        assert caught.code in ERROR_CODES
        assert caught.message
    else:
        assert 200 <= status < 300
        assert isinstance(found.response, dict)
        assert found.text != ""
