"""VMIE-SIZE: how large a disk may be, and how many a VM may have. TiB are binary: the guide prints TB."""

from collections.abc import Iterator

from diskfs.preflight.container import DiskFile
from diskfs.preflight.facts import Facts
from diskfs.preflight.rules.outcome import Outcome, failed, passed, unknown
from diskfs.preflight.rules.registry import check

TIB = 1 << 40
MAX_DISK = 16 * TIB
"""Bytes that a disk must be smaller than."""
MAX_WITHOUT_MANIFEST = 8 * TIB
"""Bytes above which a disk needs a manifest; ImportImage takes disks smaller than this."""
MAX_VOLUMES = 21


def _sizes(facts: Facts) -> Iterator[tuple[DiskFile, int | None]]:
    for file in facts.files:
        yield file, file.virtual_size


@check("VMIE-SIZE-01")
def smaller_than_16_tib(facts: Facts) -> Iterator[Outcome]:
    """The virtual size of every disk is below 16 TiB."""
    for file, size in _sizes(facts):
        if size is None:
            yield unknown(f"{file}: its virtual size is not known")
        elif size >= MAX_DISK:
            yield failed(f"{file} has {size} bytes, {MAX_DISK} is the limit that it must be below")
        else:
            yield passed(f"{file} has {size} bytes")


@check("VMIE-SIZE-02")
def needs_no_manifest(facts: Facts) -> Iterator[Outcome]:
    """The virtual size of every disk is at most 8 TiB."""
    for file, size in _sizes(facts):
        if size is None:
            yield unknown(f"{file}: its virtual size is not known")
        elif size > MAX_WITHOUT_MANIFEST:
            yield failed(f"{file} has {size} bytes, over {MAX_WITHOUT_MANIFEST}: it needs a manifest file")


@check("VMIE-SIZE-03")
def smaller_than_8_tib(facts: Facts) -> Iterator[Outcome]:
    """The virtual size of every disk is below 8 TiB when it is meant for import-image."""
    for file, size in _sizes(facts):
        if size is None:
            yield unknown(f"{file}: its virtual size is not known")
        elif size >= MAX_WITHOUT_MANIFEST:
            yield failed(f"{file} has {size} bytes, {MAX_WITHOUT_MANIFEST} is the limit that it must be below")


@check("VMIE-SIZE-04")
def size_for_an_instance(facts: Facts) -> Iterator[Outcome]:
    """States the virtual size of every disk; VMIE-SIZE-01 has the limit."""
    yield from smaller_than_16_tib(facts)


@check("VMIE-SIZE-05")
def at_most_21_disks(facts: Facts) -> Iterator[Outcome]:
    """Counts the disks of the source: at most 21."""
    count = len(facts.files)
    if count > MAX_VOLUMES:
        yield failed(f"{count} disks, {MAX_VOLUMES} is the limit")
    else:
        yield passed(f"{count} disk{'s' * (count != 1)}")
