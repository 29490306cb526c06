"""Members of tar shards as spans of bytes: which are read together, and how they are told from another shard's."""

from pathlib import Path
from typing import NamedTuple

from finetune.data.index import FILES, IMAGE, TAR_BLOCK, Index, Span
from finetune.errors import UserError

GAP_BYTES = 64 * 1024
"""Members that lie closer together than this are read at once."""


class Reading(NamedTuple):
    """Members of one file that are read at once, by their names."""

    span: Span
    members: dict[str, Span]

    def cut(self, data: bytes) -> dict[str, bytes]:
        """The members' bytes, given those of the span."""
        starts = {name: member.offset - self.span.offset for name, member in self.members.items()}
        return {name: data[starts[name] : starts[name] + member.size] for name, member in self.members.items()}


def coalesced(spans: dict[str, Span]) -> list[Reading]:
    """A sample's members, grouped into as few readings as lie close together."""
    readings: list[Reading] = []
    for name, member in sorted(spans.items(), key=lambda item: item[1].offset):
        if readings:
            (location, first, size), members = readings[-1]
            if member.offset - (first + size) <= GAP_BYTES:
                whole = Span(location, first, member.offset + member.size - first)
                readings[-1] = Reading(whole, {**members, name: member})
                continue
        readings.append(Reading(member, {name: member}))
    return readings


def header_size(header: bytes) -> int | None:
    """The member's size in a tar header of 512 bytes; None where that is no header, as its checksum tells.

    Every kind of tar has the size in octal at byte 124 and, at 148, the sum of the header's bytes in which these 8
    count as spaces; GNU writes large sizes in base 256.
    """
    size, checksum = header[124:136], header[148:156]
    if len(header) != TAR_BLOCK or _octal(checksum) != sum(header) - sum(checksum) + 8 * ord(" "):
        return None
    return int.from_bytes(size[1:], "big") if size[0] & 0x80 else _octal(size)


def _octal(field: bytes) -> int | None:
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        return None


def verify_local(index: Index, number: int) -> None:
    """Check that a local shard is the one that was indexed, by its size and the tar headers in front of its first and
    last picture; of a group of loose pictures, the first and the last.

    Raises:
        UserError: it is missing or another.
    """
    rows = _first_and_last(index, number)
    if index.kind == FILES:
        for row in rows:
            span = index.spans(row)[IMAGE]
            if not _present(index, span.location) or Path(span.location).stat().st_size != span.size:
                raise index.mismatch(span.location)
        return
    location = index.location(number)
    if not _present(index, location) or Path(location).stat().st_size != index.shards[number].size:
        raise index.mismatch(location)
    with Path(location).open("rb") as file:
        for row in rows:
            span = index.spans(row)[IMAGE]
            file.seek(span.offset - TAR_BLOCK)
            if header_size(file.read(TAR_BLOCK)) != span.size:
                raise index.mismatch(location)


def _present(index: Index, location: str) -> bool:
    if not Path(location).is_file():
        raise UserError(f"{location} is missing: put it back, or {index.remedy}")
    return True


def _first_and_last(index: Index, number: int) -> list[int]:
    """The first and the last row of a shard that has a picture: of latents, samples that are in no bucket have none."""
    sizes, rows = index.numbers(f"{IMAGE}_size"), range(*index.first_rows[number : number + 2].tolist())
    ends = (next((row for row in order if sizes[row]), None) for order in (rows, reversed(rows)))
    return sorted({row for row in ends if row is not None})
