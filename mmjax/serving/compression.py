"""Bodies in gzip or deflate: inflated up to a limit and no further, deflated where a client asks for just that."""

import zlib

from mmjax.serving.wire import Refused

WINDOWS = {"gzip": 31, "deflate": zlib.MAX_WBITS}
"""zlib's word for each container; deflate over HTTP is zlib's own (RFC 9110, 8.4.1.2)."""


def check_coding(coding: str) -> str:
    """Return the content coding of a body in lower case; Refused (415) unless it is one of identity, gzip, deflate."""
    coding = coding.strip().lower()
    if coding != "identity" and coding not in WINDOWS:
        raise Refused(
            415, "bad-content-encoding", f"Content-Encoding: expected gzip, deflate or none, got '{coding[:80]}'"
        )
    return coding


def inflated(body: bytes, coding: str, limit: int) -> bytes:
    """Return the body as it was before it was compressed.

    Refused: 413 when it has more than `limit` bytes, of which no more are made; 400 when it is damaged or cut off.
    """
    stream = zlib.decompressobj(WINDOWS[coding])
    try:
        data = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise Refused(400, "bad-compression", f"body: expected {coding} data, got something else: {error}") from error
    if len(data) > limit:
        raise Refused(413, "too-large", f"body: expected at most {limit:,} bytes once inflated, got more")
    if not stream.eof or stream.unused_data:
        got = "more after it" if stream.eof else "only the begin of it"
        raise Refused(400, "bad-compression", f"body: expected one whole {coding} stream, got {got}")
    return data


def coding_asked(accept: str) -> str | None:
    """Return the coding that the reply shall have: that of an `Accept-Encoding` which names gzip or deflate alone.

    Browsers and HTTP libraries offer a list with every request; packing floats for them would cost time and gain
    little. A client that asks for one coding means it.
    """
    asked = accept.strip().lower()
    return asked if asked in WINDOWS else None


def deflated(body: bytes, coding: str) -> bytes:
    """Return the body compressed, fast rather than small."""
    stream = zlib.compressobj(1, zlib.DEFLATED, WINDOWS[coding])
    return stream.compress(body) + stream.flush()
