"""VDI: dynamic, fixed, differencing."""

from collections.abc import Iterator
from uuid import UUID

from scripts.fuzzlib.formats import seeds
from scripts.fuzzlib.specimen import Draft, Field, Format, Specimen, Structure, Table, fields_in
from tests.samples import vdi_builder as vdi

_KIB = 1 << 10
_CHILD_ID = UUID(int=7)
_UUIDS = {name: (offset, "Q") for name, offset in vdi.UUID_OFFSETS.items()}


def _specimens() -> Iterator[Specimen]:
    yield seeds.whole("dynamic", vdi.shuffled_disk(90 * _KIB + 512, seed=1, block_size=4096)[0].build())
    yield seeds.whole("extra bytes", vdi.shuffled_disk(90 * _KIB, seed=2, block_size=4096, extra=512)[0].build())
    yield seeds.whole("fixed", vdi.fixed_disk(40 * _KIB, block_size=4096)[0].build())
    choices = {"type": vdi.DIFFERENCING, "uuid_create": _CHILD_ID, "uuid_linkage": vdi.UUID_CREATE}
    child = vdi.shuffled_disk(90 * _KIB, seed=3, block_size=4096, **choices)[0].build()
    parent = vdi.shuffled_disk(90 * _KIB, seed=4, block_size=4096)[0].build()
    yield Specimen("differencing", Draft([(0, child)], len(child)), {"parent.vdi": parent})
    yield from seeds.samples("vdi")
    yield from seeds.corpus(lambda row: row.format.startswith("vdi"), max_size=8 << 20)


def _structure(draft: Draft) -> Structure:
    fields = [*fields_in(vdi.HEADER_FIELDS, 0, "little"), *fields_in(_UUIDS, 0, "little")]
    blocks = draft.number(Field(340, 4))
    return Structure(tuple(fields), (Table(blocks, 4, 32),) * 3)


VDI = Format("vdi", "disk.vdi", _specimens, _structure, driver="vdi")
