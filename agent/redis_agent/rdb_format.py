"""Which version of Redis or Valkey can load whose RDB: what a full resync sends must be readable where it arrives."""

from __future__ import annotations

import re

_FORMATS: dict[str, tuple[tuple[tuple[int, int], int], ...]] = {
    "redis": (((6, 2), 9), ((7, 0), 10), ((7, 2), 11), ((7, 4), 12), ((8, 6), 13)),
    "valkey": (((7, 2), 11), ((8, 0), 11), ((9, 0), 80)),
}
"""RDB_VERSION of src/rdb.h, from this release on."""
_KNOWN_UP_TO = {"redis": (8, 6), "valkey": (9, 1)}
"""What a later release writes is not known here."""
_COMMON = 11
"""The newest format from before the two parted. Valkey refuses Redis's later ones by their number, although its own are
higher: their meaning differs."""

_VERSION = re.compile(r"(?:(valkey) )?(\d+)\.(\d+)")


def can_load(reader: str, writer: str) -> bool:
    """Whether a server of version ``reader`` can load the RDB that one of version ``writer`` makes.

    Formats are compared where they are known. Within one product a release reads what earlier ones wrote, so where a
    format is not known the releases themselves are compared. Nothing is held against a version that cannot be read.

    Args:
        reader: as ``RedisInfo.version`` has it: "7.0.15", or "valkey 8.0.1".
        writer: likewise.
    """
    reads, writes = _VERSION.match(reader), _VERSION.match(writer)
    if reads is None or writes is None:
        return True
    product, other = reads[1] or "redis", writes[1] or "redis"
    mine, theirs = (int(reads[2]), int(reads[3])), (int(writes[2]), int(writes[3]))
    read, written = _format(product, mine), _format(other, theirs)
    if product != other:
        # A release that is not known here is a later one, and writes and reads what is no older than the common format.
        return written is not None and written <= _COMMON and (read is None or read >= written)
    if read is None or written is None:
        return mine >= theirs
    return read >= written


def _format(product: str, release: tuple[int, int]) -> int | None:
    """Of a release; None if it is later than what is known here."""
    if release > _KNOWN_UP_TO[product]:
        return None
    formats = [number for since, number in _FORMATS[product] if since <= release]
    return formats[-1] if formats else _FORMATS[product][0][1]
