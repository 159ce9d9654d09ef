"""Decompression of LZO1X, as Btrfs stores it. The libraries that are to be had are under the GPL.

Format: Linux, Documentation/staging/lzo.rst (version 0 of the bitstream).
"""

from diskfs.guest.errors import GuestError


def decompress(data: bytes, limit: int) -> bytes:
    """Return what one LZO1X stream holds, at most `limit` bytes; raises GuestError for a damaged one."""
    try:
        return _decompressed(data, limit)
    except IndexError:
        raise GuestError("LZO: the stream ends in the middle of an instruction") from None


def _decompressed(data: bytes, limit: int) -> bytes:
    out = bytearray()
    at = 0
    # How many literals came with the instruction before: 0 to 3, or 4 for a run of them.
    state = 0
    if data[0] > 17:
        count = data[0] - 17
        at = 1 + count
        out += _taken(data, 1, count)
        state = min(count, 4)
    while True:
        instruction = data[at]
        at += 1
        if instruction < 16 and state == 0:
            count, at = _length(data, at, instruction, 15)
            count += 3
            out += _taken(data, at, count)
            at += count
            state = 4
            if len(out) > limit:
                raise GuestError(f"LZO: over {limit} bytes come out")
            continue
        if instruction >= 64:
            length = (instruction >> 5) + 1
            distance = (data[at] << 3) + ((instruction >> 2) & 7) + 1
            state = instruction & 3
            at += 1
        elif instruction >= 16:
            if instruction >= 32:
                length, at = _length(data, at, instruction & 31, 31)
                base = 1
            else:
                length, at = _length(data, at, instruction & 7, 7)
                base = 16384 + ((instruction & 8) << 11)
            low = data[at] | data[at + 1] << 8
            at += 2
            length += 2
            distance = base + (low >> 2)
            state = low & 3
            if instruction < 32 and distance == 16384:
                return bytes(out)
        else:
            is_after_run = state == 4
            length = 3 if is_after_run else 2
            distance = (data[at] << 2) + (instruction >> 2) + (2049 if is_after_run else 1)
            state = instruction & 3
            at += 1
        if distance > len(out) or len(out) + length > limit:
            raise GuestError(f"LZO: {length} bytes from {distance} back, after {len(out)} of at most {limit}")
        start = len(out) - distance
        if distance >= length:
            out += out[start : start + length]
        else:
            pattern = bytes(out[start:])
            out += (pattern * (length // distance + 1))[:length]
        out += _taken(data, at, state)
        at += state


def _length(data: bytes, at: int, value: int, most: int) -> tuple[int, int]:
    """Return a length that goes on in zero bytes where the instruction's own bits are all zero."""
    if value:
        return value, at
    value = most
    while not data[at]:
        value += 255
        at += 1
    return value + data[at], at + 1


def _taken(data: bytes, at: int, count: int) -> bytes:
    if at + count > len(data):
        raise GuestError("LZO: the stream ends within its literals")
    return data[at : at + count]
