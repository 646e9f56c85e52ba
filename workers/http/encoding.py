"""Content encodings. What we ask for, we decode; of what nobody asked for, we say the name.

aiohttp decodes by itself, but ends the connection over an encoding that it lacks, and over one that is not there: some
gateways keep `Content-Encoding: gzip` on answers that they have unpacked. Both answers are paid for.
"""

from __future__ import annotations

import re
import zlib

__all__ = ["ACCEPTED", "Decoder", "Undecodable", "decoder_of"]

ACCEPTED = "gzip, deflate"
"""Our `Accept-Encoding`."""

PIECE_BYTES = 256 * 1024
"""How much is unpacked at once: a bomb is counted piece by piece."""

_GZIP_MAGIC = b"\x1f\x8b"
_NAME = re.compile(r"[a-z0-9, ._-]{1,32}", re.ASCII)
_ANY_HEADER, _NO_HEADER = zlib.MAX_WBITS | 32, -zlib.MAX_WBITS


class Undecodable(Exception):
    """The body can't be decoded. `encoding` is its name, or "?" where that is no name."""

    def __init__(self, encoding: str) -> None:
        self.encoding = encoding if _NAME.fullmatch(encoding) else "?"
        super().__init__(self.encoding)


def decoder_of(header: str | None) -> Decoder | None:
    """What decodes a body with this `Content-Encoding`; None where nothing needs to. Raises `Undecodable`."""
    if header is None:
        return None
    name = header.strip().lower()
    if name in {"", "identity", "none"}:
        return None
    if name not in {"gzip", "x-gzip", "deflate"}:
        raise Undecodable(name)
    return Decoder(name)


class Decoder:
    """Unpacks a body as it comes. Feed it, and take pieces until there are none; then feed again."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._packed = b""
        self._stream: zlib._Decompress | None = None
        self._is_plain = False

    @property
    def is_whole(self) -> bool:
        """Whether all that was fed has been taken, and nothing is missing."""
        return not self._packed and (self._is_plain or self._stream is None or self._stream.eof)

    def feed(self, data: bytes) -> None:
        if self._stream is None and not self._is_plain and data:
            self._begin(data)
        self._packed += data

    def take(self) -> bytes:
        """The next piece; empty where more has to be fed. Raises `Undecodable`."""
        if self._is_plain:
            piece, self._packed = self._packed, b""
            return piece
        while self._packed and self._stream is not None:
            if self._stream.eof:
                if not self._packed.startswith(_GZIP_MAGIC):
                    self._packed = b""  # padding
                    break
                self._stream = zlib.decompressobj(_ANY_HEADER)
            try:
                piece = self._stream.decompress(self._packed, PIECE_BYTES)
            except zlib.error:
                raise Undecodable(self._name) from None
            self._packed = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            if piece:
                return piece
        return b""

    def _begin(self, data: bytes) -> None:
        if self._name == "deflate":
            # Some servers leave the header out, against RFC 9110.
            self._stream = zlib.decompressobj(_ANY_HEADER if data[0] & 0x0F == 8 else _NO_HEADER)
        elif data.startswith(_GZIP_MAGIC[: len(data)]):
            self._stream = zlib.decompressobj(_ANY_HEADER)
        else:
            self._is_plain = True
