"""Registry hives made by hivex: an empty hive of the specification's structures, into which hivexsh puts the rest."""

import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeAlias

Data: TypeAlias = "int | str | bytes | Sequence[str] | None"
"""REG_DWORD, REG_SZ, REG_BINARY, REG_MULTI_SZ; None deletes the value."""
Keys: TypeAlias = "Mapping[str, Mapping[str, Data] | None]"
"""Values by name, by the path of their key; None deletes the key and what is below it."""

# Revision 1, self-relative, only a DACL: everything for S-1-1-0.
_DESCRIPTOR = bytes.fromhex(
    "010004800000000000000000000000001400000002001c000100000000031400ffff1f00010100000000000100000000"
)
_KEY_FLAGS = 0x2C
"""KEY_HIVE_ENTRY, KEY_NO_DELETE, KEY_COMP_NAME."""


def make_hive(keys: Keys) -> bytes:
    """Return a hive with these keys and values; hivexsh takes lines of at most 1,023 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        hive, script = Path(folder) / "hive", Path(folder) / "script"
        hive.write_bytes(empty_hive())
        script.write_text("\n".join([*_commands(keys), "commit", "exit"]) + "\n")
        subprocess.run(["hivexsh", "-w", "-f", script, hive], check=True, capture_output=True)
        return hive.read_bytes()


def merged(*layers: Keys) -> "dict[str, Mapping[str, Data]]":
    """Return the keys of all layers, the later ones over the earlier: None takes a value, or a key and all below it."""
    result: dict[str, dict[str, Data]] = {}
    for layer in layers:
        for path, values in layer.items():
            if values is None:
                below = path.upper() + "\\"
                result = {name: kept for name, kept in result.items() if not (name.upper() + "\\").startswith(below)}
                continue
            found = result.setdefault(path, {})
            for name, data in values.items():
                found[name] = data
                if data is None:
                    del found[name]
    return dict(result)


def export_hive(hive: bytes, key: str = "\\") -> str:
    """Return what hivex reads from a hive, as registry text."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(hive)
        file.flush()
        command = ["hivexregedit", "--export", "--unsafe-printable-strings", file.name, key]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@cache
def empty_hive() -> bytes:
    """Return a hive of one bin with a root key and its security descriptor."""
    name = b"ROOT"
    key_size = _cell_size(76 + len(name))
    security = 32 + key_size
    key = struct.pack("<2sHQ", b"nk", _KEY_FLAGS, 0)
    key += struct.pack("<11I", 0, 0, 0, 0, *[0xFFFFFFFF] * 2, 0, 0xFFFFFFFF, security, 0xFFFFFFFF, 0)
    key += struct.pack("<4I2H", 0, 0, 0, 0, len(name), 0) + name
    descriptor = struct.pack("<2sHIIII", b"sk", 0, security, security, 1, len(_DESCRIPTOR)) + _DESCRIPTOR
    cells = _cell(key) + _cell(descriptor)
    free = 4096 - 32 - len(cells)
    hive_bin = struct.pack("<4sII20x", b"hbin", 0, 4096) + cells + struct.pack("<i", free) + bytes(free - 4)
    return base_block(len(hive_bin)) + hive_bin


def base_block(
    hive_bins_size: int, *, primary: int = 1, secondary: int = 1, root_cell: int = 32, minor: int = 3
) -> bytes:
    """Return a base block with the right checksum."""
    block = struct.pack("<4sIIQIIIIII", b"regf", primary, secondary, 0, 1, minor, 0, 1, root_cell, hive_bins_size)
    block = block.ljust(508, b"\0")
    checksum = 0
    for (number,) in struct.iter_unpack("<I", block):
        checksum ^= number
    return (block + struct.pack("<I", checksum)).ljust(4096, b"\0")


def _cell_size(length: int) -> int:
    return (4 + length + 7) // 8 * 8


def _cell(content: bytes) -> bytes:
    size = _cell_size(len(content))
    return (struct.pack("<i", -size) + content).ljust(size, b"\0")


def _commands(keys: Keys) -> Iterator[str]:
    made = set()
    for path, values in keys.items():
        yield "cd \\"
        names = path.split("\\") if path else []
        for depth, name in enumerate(names, 1):
            parent = "\\".join(names[:depth]).upper()
            if parent not in made:
                yield f"add {name}"
            made.add(parent)
            yield f"cd {name}"
        if values:
            yield f"setval {len(values)}"
            for name, data in values.items():
                yield name or "@"
                yield _data(data)


def _data(data: Data) -> str:
    if isinstance(data, int):
        return f"dword:{data:#010x}"
    if isinstance(data, str) and data.isascii() and data:
        return f"string:{data}"
    if isinstance(data, str):
        return "hex:1:" + _hex((data + "\0").encode("utf-16-le"))
    if isinstance(data, bytes):
        return "hex:3:" + _hex(data)
    return "hex:7:" + _hex("".join(line + "\0" for line in [*(data or ()), ""]).encode("utf-16-le"))


def _hex(data: bytes) -> str:
    return ",".join(f"{byte:02x}" for byte in data)
