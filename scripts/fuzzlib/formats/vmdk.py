"""VMDK: sparse files, streams, and descriptors that name other files."""

import random
from collections.abc import Iterator

from scripts.fuzzlib.formats import seeds
from scripts.fuzzlib.specimen import Draft, Field, Format, Specimen, Structure, Table, Text, fields_in
from tests.samples import vmdk_esx_builder as esx
from tests.samples.vmdk_builder import (
    GD_AT_END,
    HEADER_FIELDS,
    NO_DESCRIPTOR,
    SECTOR,
    Layout,
    build,
    stamped,
    with_zero_grains,
)

_GRAIN = 8
_CONTENT = with_zero_grains(stamped(_GRAIN * 40 + 3), _GRAIN, (5, 6, 20))
_HEADER = fields_in(HEADER_FIELDS, 0, "little")
_GD_OFFSET, _RGD_OFFSET = Field(56, 8), Field(48, 8)


def _layout(**choices: object) -> bytes:
    return bytes(build(_CONTENT, Layout(grain=_GRAIN, entries=16, **choices)))  # type: ignore[arg-type]  # keywords


def _is_stream(data: bytes) -> bool:
    return data[:4] == b"KDMV" and bool(data[10] & 1)


def _sparse() -> Iterator[Specimen]:
    yield seeds.whole("redundant", _layout(redundant=True, shuffle=1))
    yield seeds.whole("zeroed", _layout(version=2, zeroed=frozenset({0, 7, 8, 20}), shuffle=2))
    yield seeds.whole("no descriptor", _layout(descriptor=NO_DESCRIPTOR))
    yield seeds.whole("footer", _layout(footer=True))
    yield from seeds.samples("vmdk", lambda data: data[:4] == b"KDMV" and not _is_stream(data))
    yield from seeds.corpus(
        lambda row: row.format.startswith("vmdk-sparse"),
        accept=lambda data: data[:4] == b"KDMV" and not _is_stream(data),
    )


def _stream() -> Iterator[Specimen]:
    yield seeds.whole("footer", _layout(compressed=True, footer=True, version=3, shuffle=1))
    yield seeds.whole("header", _layout(compressed=True, version=3))
    yield seeds.whole("stored blocks", _layout(compressed=True, footer=True, version=3, level=0))
    yield seeds.whole("short last", _layout(compressed=True, footer=True, short_last=True, gap=1))
    yield from seeds.samples("vmdk", _is_stream)
    yield from seeds.corpus(lambda row: row.format.startswith("vmdk-sparse"), accept=_is_stream)


def _structure(draft: Draft) -> Structure:
    fields = list(_HEADER)
    tables = []
    texts = []
    descriptor = draft.number(Field(28, 8)) * SECTOR
    if 0 < descriptor < draft.size:
        texts.append(Text(descriptor, min(draft.number(Field(36, 8)) * SECTOR, 10240)))
    footer = draft.size - 2 * SECTOR
    if draft.number(_GD_OFFSET) == GD_AT_END and draft.read(footer, 4) == b"KDMV":
        # The footer counts as much as the header, whose directory it gives, and the marker before it.
        fields += fields_in(HEADER_FIELDS, footer, "little")
        fields += [Field(footer - SECTOR, 8), Field(footer - SECTOR + 8, 4), Field(footer - SECTOR + 12, 4)]
        directory = draft.number(Field(footer + 56, 8)) * SECTOR
    else:
        directory = draft.number(_GD_OFFSET) * SECTOR
    for place in (directory, draft.number(_RGD_OFFSET) * SECTOR):
        if not 0 < place < draft.size:
            continue
        tables.append(Table(place, 4, 4))
        for number in range(2):
            table = draft.number(Field(place + 4 * number, 4)) * SECTOR
            if 0 < table < draft.size:
                tables.append(Table(table, 4, 16))
                grain = draft.number(Field(table, 4)) * SECTOR
                # The marker of a compressed grain; the first bytes of another.
                fields += [Field(grain, 8), Field(grain + 8, 4), Field(grain + 12, 2)]
    return Structure(tuple(fields), tuple(tables), tuple(texts))


def _agree(draft: Draft, chance: random.Random) -> None:
    """Make the footer say what the header says, but for where the directory is."""
    footer = draft.size - 2 * SECTOR
    if draft.read(footer, 4) == b"KDMV" and chance.random() < 0.8:
        head = draft.read(0, SECTOR)
        draft.write(footer, head[:56])
        draft.write(footer + 64, head[64:])


_USUAL = (
    '# Disk DescriptorFile\nversion=1\nCID=7d1c23ab\nparentCID=ffffffff\ncreateType="{kind}"\n\n# Extent description\n'
    '{lines}\n# The Disk Data Base\n#DDB\n\nddb.adapterType = "lsilogic"\nddb.geometry.cylinders = "20"\n'
)
_FLAT = stamped(64)
_PART = bytes(build(stamped(64, 3), Layout(grain=_GRAIN, entries=16, descriptor=NO_DESCRIPTOR)))


def _texts() -> Iterator[Specimen]:
    beside = {"disk-flat.vmdk": _FLAT, "disk-s001.vmdk": _PART, "disk-s002.vmdk": _PART, "disk-f001.vmdk": _FLAT}
    lines = {
        "monolithicFlat": 'RW 64 FLAT "disk-flat.vmdk" 0\n',
        "twoGbMaxExtentFlat": 'RW 32 FLAT "disk-flat.vmdk" 0\nRW 32 FLAT "disk-f001.vmdk" 32\nRW 8 ZERO\n',
        "twoGbMaxExtentSparse": 'RW 64 SPARSE "disk-s001.vmdk"\nRW 64 SPARSE "disk-s002.vmdk"\nRW 5 ZERO\n',
        "vmfs": 'RW 64 VMFS "disk-flat.vmdk"\n',
        "custom": 'RW 64 SPARSE "disk-s001.vmdk"\nRDONLY 10 ZERO\nRW 20 FLAT "disk-f001.vmdk" 7\n',
    }
    for kind, extents in lines.items():
        data = _USUAL.format(kind=kind, lines=extents).encode()
        yield Specimen(kind, Draft([(0, data)], len(data)), beside)


def _text_structure(draft: Draft) -> Structure:
    return Structure(texts=(Text(0, draft.size),) * 3)


def _reline(draft: Draft, chance: random.Random) -> None:
    """Change the numbers of an extent line, so that it stays one."""
    data = draft.read(0, draft.size)
    lines = data.split(b"\n")
    extents = [at for at, line in enumerate(lines) if line.startswith((b"RW ", b"RDONLY "))]
    if not extents:
        return
    at = chance.choice(extents)
    words = lines[at].split(b" ")
    number = chance.choice((0, 1, 7, 8, 32, 63, 64, 65, 128, 2**31, 2**32 - 1, 2**54 - 1, 2**54, 2**63, 2**64 - 1))
    position = chance.choice([index for index, word in enumerate(words) if word.isdigit()] or [0])
    words[position] = b"%d" % number
    if chance.random() < 0.3 and len(words) > 2:
        words[2] = chance.choice((b"FLAT", b"SPARSE", b"ZERO", b"VMFS", b"VMFSSPARSE", b"SESPARSE", b"VMFSRDM"))
    lines[at] = b" ".join(words)
    if chance.random() < 0.3:
        lines[at : at + 1] = [lines[at]] * chance.choice((2, 3, 200))
    draft.replace(b"\n".join(lines))


_EXTENT = "disk-extent.vmdk"
_TABLE_SHOWN = 64


def _extents() -> Iterator[Specimen]:
    """Yield extents as ESX writes them; what is opened is the descriptor that names them."""
    content = stamped(8 * 30 + 5)
    kinds = {
        "VMFSSPARSE": bytes(esx.cowd(esx.grains_of(content, 1), 8 * 30 + 5, seed=1)),
        "VMFSSPARSE of 8": bytes(esx.cowd(esx.grains_of(content, 8), 8 * 30 + 5, grain=8)),
        "SESPARSE": bytes(esx.sesparse(esx.grains_of(content, 8), 8 * 30 + 5, zero=(50,), unmapped=(60,), seed=2)),
        "SPARSE": _PART,
    }
    for name, data in kinds.items():
        sectors = 64 if name == "SPARSE" else 8 * 30 + 5
        text = esx.descriptor([f'RW {sectors} {name.split()[0]} "{_EXTENT}"']).encode()
        yield Specimen(name, Draft([(0, data)], len(data)), {}, text)


def _extent_structure(draft: Draft) -> Structure:
    magic = draft.read(0, 4)
    if magic == b"KDMV":
        return _structure(draft)
    if magic == b"COWD":
        fields = [Field(offset, 4) for offset in esx.COWD_FIELDS.values()]
        directory = draft.number(Field(esx.COWD_FIELDS["gdOffset"], 4)) * SECTOR
        table = draft.number(Field(directory, 4)) * SECTOR
        return Structure(tuple(fields), (Table(directory, 4, 1), *[Table(table, 4, _TABLE_SHOWN)] * 3))
    names = esx.SESPARSE_FIELDS
    fields = [Field(8 * number, 8) for number in range(len(names))]
    places = {name: draft.number(Field(8 * number, 8)) * SECTOR for number, name in enumerate(names)}
    fields += [Field(places["volatile_header_offset"] + 8 * number, 8) for number in range(4)]
    tables = [Table(places["grain_dir_offset"], 8, 1), *[Table(places["grain_tables_offset"], 8, _TABLE_SHOWN)] * 3]
    return Structure(tuple(fields), tuple(tables))


SPARSE = Format("vmdk-sparse", "disk.vmdk", _sparse, _structure, _agree, driver="vmdk")
STREAM = Format("vmdk-stream", "disk.vmdk", _stream, _structure, _agree, driver="vmdk")
TEXT = Format("vmdk-text", "disk.vmdk", _texts, _text_structure, reshape=_reline, driver="vmdk", changes=(1,))
EXTENT = Format("vmdk-extent", _EXTENT, _extents, _extent_structure, driver="vmdk")
