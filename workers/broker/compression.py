"""How large a compressed body is, without holding it: 1.4 MB can unfold to gigabytes."""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import TYPE_CHECKING, Any

from kombu import compression as kombu_compression

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["MAX_BODY_BYTES", "why_unreadable"]

MAX_BODY_BYTES = 64 * 1024 * 1024
"""What a compressed body may unfold to."""

CHUNK_BYTES = 256 * 1024


def why_unreadable(body: bytes, method: str) -> str | None:
    """Why a body that is compressed like this must not be decompressed; None: it may."""
    try:
        kombu_compression.get_decoder(method)
    except KeyError:
        return None  # kombu knows no such method, and says so
    decompressor = _DECOMPRESSORS.get(kombu_compression._aliases.get(method, method))
    if decompressor is None:
        return f"its body is compressed by {method}, which can't be limited; use gzip, bzip2, lzma or zstd"
    size = 0
    try:
        for chunk in _unfold(body, decompressor):
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                return f"its compressed body unfolds to more than {MAX_BODY_BYTES // 1024**2} MB"
    except Exception:  # noqa: BLE001 - each method has errors of its own; kombu meets the same one, and it is handled
        return None
    return None


def _unfold(body: bytes, decompressor: Callable[[], Any]) -> Iterator[bytes]:
    while body:  # one stream after the other, as bz2 and lzma permit
        stream, before = decompressor(), len(body)
        chunk = stream.decompress(body, CHUNK_BYTES)
        while not stream.eof:
            yield chunk
            rest = getattr(stream, "unconsumed_tail", b"")  # of zlib; the others keep it themselves
            chunk = stream.decompress(rest, CHUNK_BYTES)
            if not chunk and not rest:
                return  # it is cut off
        yield chunk
        body = stream.unused_data
        if len(body) >= before:
            return


_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
}
if hasattr(kombu_compression, "zstd"):
    _DECOMPRESSORS["application/zstd"] = kombu_compression.zstd.ZstdDecompressor
