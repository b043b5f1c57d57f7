"""Who may ask, how often, and how much: API keys, a token bucket for each, the bounds on a request.

Keys are random (`new_key` makes 256 bits), so a plain SHA-256 of them cannot be searched; scrypt is for passwords that
people choose, and its milliseconds would let anybody without a key keep the server busy.
"""

import hashlib
import hmac
import ipaddress
import math
import re
import resource
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from mmjax.errors import ConfigError
from mmjax.serving.wire import Refused

KEYS_VARIABLE = "MMJAX_API_KEYS"
"""Environment variable with keys, separated by commas or white space."""
SHORTEST_KEY = 24
"""Characters of a key at least: 128 bits in base64 are 22."""
MOST_CALLERS = 10_000
"""Token buckets at a time; the one longest unused is forgotten for a new one."""
MOST_FILES = 65_536
OTHER_FILES = 128
"""Open files that are no connections."""
OPEN = frozenset(
    {"/", "/health", "/health/live", "/health/ready", "/health/startup", "/v2/health/live", "/v2/health/ready"}
)
"""Paths that need no key and cost no token: probes, and the page."""
OPEN_FOLDERS = ("/pages/", "/docs")
"""Begins of such paths: files of the page and of the API's description."""


class Key(NamedTuple):
    """An API key as it is kept: the name of its holder and the SHA-256 of the key."""

    name: str
    digest: bytes


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a request may be and take; times in seconds."""

    keys: tuple[Key, ...] = ()
    """Without keys everybody may ask."""
    rate: float | None = None
    """Requests a second of one key (of one address where there are no keys); None is no bound."""
    burst: int = 20
    """Requests of one key that may come at once."""
    header_timeout_s: float = 10.0
    """From the first byte (or the connection) to the last header."""
    body_timeout_s: float = 30.0
    """From the last header to the last byte of the body."""
    unread_timeout_s: float = 5.0
    """For the rest of a body that was refused: read on, so that the client sees the reply, but not for ever."""
    max_connections: int | None = None
    """Connections at a time, beyond which those go that wait longest for their client; None: as files allow."""
    max_url_bytes: int = 8 * 1024
    max_header_bytes: int = 32 * 1024
    """Request line and headers together."""
    max_headers: int = 100
    max_chunks: int = 20_000
    """Chunks of one body."""


# ---- keys

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASHED = re.compile(r"sha256:([0-9a-f]{64})")


def new_key(name: str) -> tuple[str, str]:
    """Return (key, line for the file of keys): the key goes to its holder and is kept nowhere else.

    >>> key, line = new_key("app")
    >>> line == f"app:sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    True
    """
    key = f"mmjax_{secrets.token_urlsafe(32)}"
    return key, f"{name}:sha256:{_digest(key).hex()}"


def load_keys(path: str | Path | None, environment: Mapping[str, str]) -> tuple[Key, ...]:
    """Return the keys of a file and of `MMJAX_API_KEYS`; ConfigError, without the keys, for lines that are none.

    An entry is `NAME:sha256:HEX`; in the environment, where secrets arrive as they are, also `NAME:KEY`. A name may
    have several keys, all valid: to replace one, add the new, move its holder, take the old away.
    """
    lines: list[tuple[str, str]] = []
    if path is not None:
        try:
            text = Path(path).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"file of API keys {path}: expected a readable text file, got: {error}") from error
        lines += [(f"{path}, line {i}", line.strip()) for i, line in enumerate(text, 1)]
    given = re.split(r"[\s,]+", environment.get(KEYS_VARIABLE, ""))
    lines += [(f"{KEYS_VARIABLE}, entry {i}", entry) for i, entry in enumerate(given, 1)]
    found, wrong = [], []
    for where, line in lines:
        if line and not line.startswith("#"):
            key = _parsed(line, plain=where.startswith(KEYS_VARIABLE))
            (found if isinstance(key, Key) else wrong).append(key if isinstance(key, Key) else f"{where}: {key}")
    if path is not None and not found:
        wrong.append(f"{path}: expected at least one line NAME:sha256:HEX, got none; the server would be open to all")
    if wrong:
        raise ConfigError(wrong)
    return tuple(found)


def _parsed(line: str, *, plain: bool) -> Key | str:
    """Return the Key of a line, or what was expected; never what was given, as it may be a key."""
    name, _, rest = line.partition(":")
    if not _NAME.fullmatch(name) or not rest:
        return "expected NAME:sha256:HEX with a name of letters, digits and ._-, got another; see mmjax.serving.limits"
    if found := _HASHED.fullmatch(rest):
        return Key(name, bytes.fromhex(found[1]))
    if not plain or rest.startswith("sha256:"):
        return "expected sha256: and 64 lowercase hex digits after the name, got something else; give the key's hash"
    if len(rest) < SHORTEST_KEY or not rest.isascii():
        return f"expected a key of at least {SHORTEST_KEY} ASCII characters, got fewer; use a random one"
    return Key(name, _digest(rest))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def open_to_others(host: str, limits: Limits) -> str | None:
    """Return a warning where a server that needs no key can be reached from other machines, else None.

    >>> open_to_others("127.0.0.1", Limits())
    >>> open_to_others("0.0.0.0", Limits())
    '--host 0.0.0.0: others can reach this server and it asks for no API key; give it --api-keys FILE'
    """
    try:
        near = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        near = False
    if near or limits.keys:
        return None
    return f"--host {host}: others can reach this server and it asks for no API key; give it --api-keys FILE"


def connections_allowed() -> int:
    """Return how many connections the files that this process may open leave room for.

    Raises its soft bound on open files, where there is one, to the hard one first, or to 65,536.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MOST_FILES:
        soft = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    files = MOST_FILES if soft == resource.RLIM_INFINITY else soft
    return max(files - OTHER_FILES, files // 2)


# ---- the gate


class Gate:
    """Lets requests in by key and rate. Of one event loop: not for several threads."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Caller to (tokens, when that was), the longest unused first."""

    @property
    def by_address(self) -> bool:
        """Whether it is the address of a client that bounds its rate."""
        return self._limits.rate is not None and not self._limits.keys

    def admit(self, path: str, headers: Iterable[tuple[bytes, bytes]], address: str) -> str | None:
        """Return the name of the caller's key (None without keys); Refused with 401 or 429."""
        limits = self._limits
        if (not limits.keys and limits.rate is None) or is_open(path):
            return None
        name = holder(limits.keys, headers) if limits.keys else None
        if limits.rate is not None:
            self._spend(address if name is None else name, limits.rate)
        return name

    def _spend(self, caller: str, rate: float) -> None:
        now, full = self._clock(), float(self._limits.burst)
        tokens, since = self._buckets.pop(caller, (full, now))
        tokens = min(full, tokens + (now - since) * rate)
        self._buckets[caller] = (max(tokens - 1, 0.0) if tokens >= 1 else tokens, now)
        if len(self._buckets) > MOST_CALLERS:
            self._buckets.popitem(last=False)
        if tokens < 1:
            told = f"expected at most {rate:g} requests a second ({self._limits.burst} at once), got more; wait"
            raise Refused(429, "rate", told, retry_after_s=max(1, math.ceil((1 - tokens) / rate)))


def is_open(path: str) -> bool:
    """Return whether a path needs no key."""
    return path in OPEN or (path.startswith(OPEN_FOLDERS) and ".." not in path)


def holder(keys: Sequence[Key], headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the name of the key in `Authorization: Bearer` or `X-API-Key`; Refused (401) where it is none of `keys`.

    Every key is compared, each in constant time, so that the time tells nothing.
    """
    given = b""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            given = value[7:].strip()
        elif name == b"x-api-key":
            given = value.strip()
    digest, found = hashlib.sha256(given).digest(), None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key.name
    if found is None:
        got = "another one" if given else "none"
        raise Refused(401, "unauthorized", f"Authorization: expected Bearer and an API key of this server, got {got}")
    return found
