"""qcow2, versions 2 and 3, with every kind of cluster."""

from collections.abc import Iterator

from scripts.fuzzlib.formats import seeds
from scripts.fuzzlib.specimen import Draft, Field, Format, Specimen, Structure, Table, Text, fields_in
from tests.samples import qcow2_builder as qcow2
from tests.samples.qcow2_builder import ZSTD, Qcow2Builder, mixed_disk

_KIB = 1 << 10
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_BASE = qcow2.stamped(40 * _KIB, 99)
_FIRST_CLUSTER = 512


def _specimens() -> Iterator[Specimen]:
    yield seeds.whole("version 2", bytes(mixed_disk(40 * 512, seed=1, version=2, cluster_bits=9)[0].build()))
    yield seeds.whole("version 3", bytes(mixed_disk(140 * 512, seed=2, cluster_bits=9, shuffle=2)[0].build()))
    yield seeds.whole(
        "zstd", bytes(mixed_disk(30 * _KIB + 512, seed=3, cluster_bits=10, compression_type=ZSTD)[0].build())
    )
    yield seeds.whole("extended", bytes(mixed_disk(12 * 16 * _KIB, seed=4, cluster_bits=14, extended=True)[0].build()))
    builder = Qcow2Builder(9 * _KIB, cluster_bits=10, backing_file=b"base", backing_format=b"raw")
    builder.put(0, qcow2.stamped(_KIB, 1))
    builder.put_compressed(1, qcow2.stamped(_KIB, 2))
    builder.put_zero(2, data=b"\xee" * _KIB)
    data = bytes(builder.build())
    yield Specimen("backing file", Draft([(0, data)], len(data)), {"base": _BASE})
    yield from seeds.samples("qcow2")
    yield from seeds.corpus(lambda row: row.format.startswith("qcow2") and "backing" not in row.format)


def _structure(draft: Draft) -> Structure:
    version_3 = draft.number(Field(4, 4, "big")) >= 3
    names = {name: place for name, place in qcow2.HEADER_FIELDS.items() if version_3 or place[0] < 72}
    fields = fields_in(names, 0, "big")
    length = min(draft.number(Field(100, 4, "big")), 112) if version_3 else 72
    # Two header extensions: type and length of each.
    fields += [Field(length + step, 4, "big") for step in (0, 4, 8, 12)]
    l1 = draft.number(Field(40, 8, "big"))
    tables = [Table(l1, 8, 2, "big")]
    for number in range(2):
        l2 = draft.number(Field(l1 + 8 * number, 8, "big")) & _OFFSET
        if 0 < l2 < draft.size:
            tables += [Table(l2, 8, 64, "big")] * 2
            # The upper bytes of entries by themselves: their flags, and the size of compressed clusters.
            tables.append(Table(l2, 2, 64, "big"))
    return Structure(tuple(fields), tuple(tables), (Text(length, _FIRST_CLUSTER - length),))


QCOW2 = Format("qcow2", "disk.qcow2", _specimens, _structure, driver="qcow2")
