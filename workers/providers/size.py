"""How large a request is: characters of text, and what in it is no text."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["NO_MEDIA", "Media", "measure"]


class Media(NamedTuple):
    """How many of each a prompt holds. Their base64 says nothing of the tokens that they take."""

    pictures: int = 0
    sounds: int = 0
    files: int = 0


NO_MEDIA = Media()

_BY_TYPE = {
    **dict.fromkeys(("image_url", "input_image", "image"), Media._fields.index("pictures")),
    **dict.fromkeys(("input_audio", "audio_url", "audio"), Media._fields.index("sounds")),
    **dict.fromkeys(("file", "input_file", "document", "video_url", "input_video"), Media._fields.index("files")),
}
_PAYLOADS = frozenset({*_BY_TYPE, "source", "file_data", "data"})


def measure(value: Any) -> tuple[int, Media]:
    """Characters of text in a JSON value, roughly as the provider's tokenizer meets them, and its media."""
    chars, counts, found = 0, [0, 0, 0], [value]
    for item in found:
        if isinstance(item, str):
            chars += len(item)
        elif isinstance(item, dict):
            kind = item.get("type")
            if type(kind) is str and kind in _BY_TYPE:
                counts[_BY_TYPE[kind]] += 1
                found += [each for key, each in item.items() if key not in _PAYLOADS]
            else:
                found += item.values()
        elif isinstance(item, list):
            found += item
        elif item is not None:
            chars += 1
    return chars, Media(*counts) if any(counts) else NO_MEDIA
