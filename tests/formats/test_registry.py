"""Which format an image is taken for."""

import itertools
import struct

import pytest

from diskfs_formats.driver import HEAD_SIZE, TAIL_SIZE, Match, NoRelatedFiles, ProbeWindow
from diskfs_formats.errors import (
    CorruptImage,
    ParentUnavailable,
    TruncatedImage,
    UnknownFormat,
    UnsupportedFeature,
)
from diskfs_formats.registry import DRIVERS, detect, driver_named, open_image
from diskfs_formats.source import MemorySource
from tests.samples.vmdk_builder import Layout, build, stamped

MBR = bytes(510) + b"\x55\xaa"
VHD_FOOTER = b"conectix".ljust(512, b"\0")


def sparse() -> bytes:
    return bytes(build(stamped(300), Layout(grain=8)))


def detected(data: bytes, *containers: str) -> str:
    return detect(ProbeWindow.of(MemorySource(data)), "disk.img", containers)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (sparse(), "vmdk"),
        (b"KDMV", "vmdk"),
        (b"# Disk DescriptorFile\nversion=1\n", "vmdk"),
        (MBR, "raw"),
        (MBR + b"EFI PART".ljust(512, b"\0"), "raw"),
        (bytes(4096) + b"EFI PART", "raw"),
        (b"x", "raw"),
        (bytes(100_000), "raw"),
        (b"KDM", "raw"),
    ],
)
def test_content_decides(data: bytes, name: str) -> None:
    assert detected(data) == name


def test_an_empty_file_is_nothing() -> None:
    with pytest.raises(UnknownFormat, match=r"disk\.img: the file is empty"):
        detected(b"")


FOREIGN = {
    "qcow2": b"QFI\xfb",
    "QED": b"QED\0",
    "VDI": bytes(64) + struct.pack("<I", 0xBEDA107F),
    "Parallels": b"WithoutFreeSpace",
    "gzip": b"\x1f\x8b\x08",
    "xz": b"\xfd7zXZ\0",
    "zstd": struct.pack("<I", 0xFD2FB528),
    "zip": b"PK\x03\x04",
}


READ = {driver.name for driver in DRIVERS}
NOT_READ = [(name, magic) for name, magic in FOREIGN.items() if name.lower() not in READ]


@pytest.mark.parametrize(("name", "magic"), NOT_READ)
def test_a_format_that_is_not_read_is_refused_by_name(name: str, magic: bytes) -> None:
    with pytest.raises(UnsupportedFeature, match=f"{name}.*--format raw"):
        detected(magic + bytes(2000))
    data = magic + bytes(2000)
    assert open_image(MemorySource(data), format_name="raw").read_at(0, len(data)) == data


def test_a_raw_disk_whose_guest_wrote_a_header_into_it_is_not_taken_for_that_format() -> None:
    for head in (b"KDMV", b"# Disk DescriptorFile\nversion=1\n"):
        disk = head.ljust(510, b"\0") + b"\x55\xaa" + bytes(10_000)
        with pytest.raises(UnknownFormat, match="vmdk or raw with a partition table; say which it is with --format"):
            detected(disk)
    gpt = sparse()[:512] + b"EFI PART" + sparse()[520:]
    with pytest.raises(UnknownFormat, match="vmdk or raw with a partition table"):
        detected(gpt)


def test_two_formats_at_once_are_refused_with_both_names() -> None:
    with pytest.raises(UnknownFormat) as raised:
        detected(sparse() + VHD_FOOTER)
    names = str(raised.value).lower()
    assert "vmdk" in names
    assert "vhd" in names
    with pytest.raises(UnknownFormat, match="ova or vmdk"):
        detected(sparse(), "ova")
    assert detected(bytes(1000), "ova") == "ova"


def test_every_pair_of_signatures_is_refused() -> None:
    def overlaid(one: bytes, two: bytes) -> bytes:
        data = bytearray(2048)
        for magic in (one, two):
            for at, byte in enumerate(magic):
                if byte:
                    data[at] = byte
        return bytes(data)

    # Signatures at different places in one file.
    vdi = FOREIGN["VDI"]
    for name, magic in FOREIGN.items():
        if name != "VDI":
            with pytest.raises(UnknownFormat, match="it could be"):
                detected(overlaid(magic, vdi))
    with pytest.raises(UnknownFormat, match="it could be"):
        detected(overlaid(b"KDMV", vdi))


def test_a_named_format_is_not_second_guessed() -> None:
    data = sparse()
    assert open_image(MemorySource(data), format_name="raw").read_at(0, 600) == data[:600]
    with pytest.raises((TruncatedImage, CorruptImage, UnsupportedFeature)):
        open_image(MemorySource(bytes(100)), format_name="vmdk")


def test_an_unknown_format_name_lists_those_that_are_known() -> None:
    with pytest.raises(UnsupportedFeature, match=r"format 'floppy' is not read; these are: .*vmdk"):
        driver_named("floppy")


def test_every_driver_is_found_by_its_name_and_raw_comes_last() -> None:
    names = [driver.name for driver in DRIVERS]
    assert len(set(names)) == len(names)
    assert all(driver_named(name).name == name for name in names)
    assert names[-1] == "raw"


@pytest.mark.parametrize("size", [0, 1, 3, 4, 511, 512, HEAD_SIZE - 1, HEAD_SIZE, HEAD_SIZE + 1, HEAD_SIZE + TAIL_SIZE])
def test_probing_never_fails_whatever_the_size(size: int) -> None:
    for fill in (b"\0", b"\xff", b"\n", b"#", b"K"):
        window = ProbeWindow.of(MemorySource(fill * size))
        assert len(window.head) == min(size, HEAD_SIZE)
        assert window.tail == (fill * size)[-TAIL_SIZE:]
        assert window.size == size
        for driver in DRIVERS:
            assert driver.probe(window) in Match


def test_probing_reads_each_end_once() -> None:
    class Counting(MemorySource):
        reads = 0

        def read_at(self, offset: int, length: int, /) -> bytes:
            self.reads += 1
            return super().read_at(offset, length)

    for size, reads in ((10, 1), (HEAD_SIZE, 1), (HEAD_SIZE + 1, 2), (10 * HEAD_SIZE, 2)):
        source = Counting(bytes(size))
        ProbeWindow.of(source)
        assert source.reads == reads


def test_only_raw_falls_back() -> None:
    window = ProbeWindow.of(MemorySource(bytes(1000)))
    assert [driver.name for driver in DRIVERS if driver.probe(window) is Match.FALLBACK] == ["raw"]


def test_an_image_that_must_stand_alone_opens_no_other_file() -> None:
    with pytest.raises(ParentUnavailable, match=r"x\.vmdk"):
        NoRelatedFiles().open("x.vmdk")
    with pytest.raises(ParentUnavailable) as raised:
        NoRelatedFiles().open_parent(["a\x1b[2J", "/etc/passwd"], None)
    assert str(raised.value).isprintable()


def test_a_raw_disk_of_part_of_a_sector_is_a_warning() -> None:
    for size, rules in ((1023, ["raw-partial-sector"]), (1024, []), (1025, ["raw-partial-sector"])):
        disk = open_image(MemorySource(bytes(size)))
        assert [finding.rule for finding in disk.info.findings] == rules
        assert disk.size == size


def test_the_order_of_drivers_does_not_matter_for_a_signature() -> None:
    window = ProbeWindow.of(MemorySource(sparse()))
    for order in itertools.permutations(DRIVERS[:3]):
        assert [driver.name for driver in order if driver.probe(window) is Match.SIGNATURE] == ["vmdk"]
