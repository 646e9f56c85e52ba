"""How large a request is, by its text and by what is no text."""

from __future__ import annotations

from typing import Any

import pytest

from workers.providers.size import NO_MEDIA, Media, measure

PAYLOAD = "A" * 130_000


@pytest.mark.parametrize(
    ("part", "media"),
    [
        ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PAYLOAD}"}}, Media(pictures=1)),
        ({"type": "image_url", "image_url": f"data:image/png;base64,{PAYLOAD}"}, Media(pictures=1)),
        ({"type": "image_url", "image_url": {"url": "https://host/a.png"}}, Media(pictures=1)),
        ({"type": "input_audio", "input_audio": {"data": PAYLOAD, "format": "wav"}}, Media(sounds=1)),
        ({"type": "file", "file": {"filename": "a.pdf", "file_data": PAYLOAD}}, Media(files=1)),
        ({"type": "image", "source": {"type": "base64", "data": PAYLOAD}}, Media(pictures=1)),
    ],
)
def test_a_payload_is_no_text(part: dict[str, Any], media: Media) -> None:
    chars, found = measure([{"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]}])
    assert found == media
    assert chars < 50


def test_text_counts_wherever_it_stands() -> None:
    assert measure([{"role": "user", "content": "Hello"}, None, 7, True]) == (11, NO_MEDIA)
    assert measure({"type": ["image_url"], "text": "abc"}) == (12, NO_MEDIA)
