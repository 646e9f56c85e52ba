"""Exact counts of a model's tokens, by a `tokenizer.json` that lies on this machine. Nothing is ever downloaded.

The library is an extra (`pip install "promptmill[tokenizer]"`), imported only where the catalogue names such a file.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.catalog import InvalidCatalog

if TYPE_CHECKING:
    from collections.abc import Mapping

    from config.catalog import Catalog

__all__ = ["TextTokenizer", "tokenizers_of"]

MOST_TOKENS_A_CHARACTER = 24
"""A text's tokens are never more: one code point may be normalized to eighteen characters."""
MOST_TOKENS_A_LETTER = 2
"""Of ASCII, where nothing is normalized to more."""


class TextTokenizer:
    """One model's. For any thread."""

    def __init__(self, path: Path) -> None:
        """Raises ImportError without the extra, OSError without the file, and ValueError for another file."""
        library: Any = import_module("tokenizers")
        text = path.read_text(encoding="utf-8")
        try:
            self._tokenizer: Any = library.Tokenizer.from_str(text)
        except Exception as error:  # noqa: BLE001 - the library raises no other
            raise ValueError(str(error)) from None
        # Files of embedding models have both, as they were trained: that would hide how long a text is.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.specials: int = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        """Tokens that the model adds to each text."""

    def surely_fits(self, text: str, most: int) -> bool:
        """Whether a text has at most so many tokens however they are cut. Cheap, and false of longer texts."""
        each = MOST_TOKENS_A_LETTER if text.isascii() else MOST_TOKENS_A_CHARACTER
        return each * len(text) + self.specials <= most

    def count(self, text: str) -> int:
        """Its tokens, those that the model adds included."""
        return len(self._encoded(text)) + self.specials

    def starts(self, text: str) -> list[int]:
        """Where each of the text's own tokens begins, in characters."""
        return [start for start, _ in self._encoded(text).offsets]

    def _encoded(self, text: str) -> Any:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeError):  # half of a surrogate pair, which no token stands for
            return self._tokenizer.encode(text.encode(errors="replace").decode(), add_special_tokens=False)


def tokenizers_of(catalog: Catalog) -> Mapping[str, TextTokenizer]:
    """By their paths, those that the catalogue's models name. Raises `InvalidCatalog`, with the next step."""
    found: dict[str, TextTokenizer] = {}
    for name, model in catalog.models.items():
        path = model.tokenizer
        if path is None or path in found:
            continue
        try:
            found[path] = TextTokenizer(Path(path))
        except ImportError:
            reason = 'counting tokens is an extra; install it with `pip install "promptmill[tokenizer]"`'
        except OSError as error:
            reason = f"{path} can't be read ({error.strerror}); put the model's tokenizer.json there"
        except ValueError as error:
            reason = f"{path} is no tokenizer.json that the installed `tokenizers` can read ({error})"
        else:
            continue
        raise InvalidCatalog(f'[models."{name}"] tokenizer: {reason}, or leave the key out: tokens are estimated then')
    return found
