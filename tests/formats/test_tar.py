"""The index of tar archives against GNU tar, Python's tarfile and bytes of the specification."""

import io
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest

from diskfs_formats.errors import CorruptImage, DiskfsError, TruncatedImage, UnsafeReference, UnsupportedFeature
from diskfs_formats.source import MemorySource
from diskfs_formats.tar import HEADER, TarIndex, is_tar, normalised_path, path_problem, read_tar_index
from tests.helpers import CorpusRow

FORMATS: dict[str, Literal[0, 1, 2]] = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}
END = bytes(1024)


def archive(files: Mapping[str, bytes], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    """What Python's tarfile writes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mtime = 1234567890
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def header(name: bytes = b"vm.ovf", size: bytes = b"00000000000\0", **fields: bytes) -> bytes:
    """One ustar header with the right checksum; fields as in the specification."""
    values = {
        "name": name,
        "mode": b"0000644\0",
        "uid": b"0000000\0",
        "gid": b"0000000\0",
        "size": size,
        "mtime": b"00000000000\0",
        "chksum": b" " * 8,
        "typeflag": b"0",
        "magic": b"ustar\0",
        "version": b"00",
        **fields,
    }
    sizes = {item.name: item.sizeof() for item in HEADER.subcons if item.name}
    block = HEADER.build({field: values.get(field, b"").ljust(width, b"\0") for field, width in sizes.items()})
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def index(data: bytes) -> TarIndex:
    return read_tar_index(MemorySource(data, "vm.ova"))


def names(data: bytes) -> list[str]:
    return [member.name for member in index(data).members]


def pax(records: bytes) -> bytes:
    """An extended header for the next member."""
    data = records.ljust(-(-len(records) // 512) * 512, b"\0")
    return header(b"PaxHeaders/x", size=b"%011o\0" % len(records), typeflag=b"x") + data


def test_members_are_where_tarfile_finds_them(corpus: Path, manifest: list[CorpusRow]) -> None:
    appliances = [row for row in manifest if row.path.endswith((".ova", ".tar")) and "not-tar" not in row.path]
    assert len(appliances) > 20
    for row in appliances:
        path = corpus / row.path
        with tarfile.open(path) as tar:
            expected = [(member.name, member.offset_data, member.size, int(member.mtime)) for member in tar]
        found = read_tar_index(MemorySource(path.read_bytes(), row.path)).members
        assert [(member.name, member.offset, member.size, member.mtime) for member in found] == expected
        assert all(member.header_offset == member.offset - 512 for member in found)


@pytest.mark.parametrize("tar_format", FORMATS)
def test_every_format_gives_the_bytes_that_went_in(tar_format: str) -> None:
    files = {"vm.ovf": b"<xml>", "disk1.vmdk": bytes(range(256)) * 5, "empty.iso": b"", "sub/disk2.vmdk": b"x" * 512}
    data = archive(files, FORMATS[tar_format])
    members = index(data).members
    assert {member.name: data[member.offset : member.offset + member.size] for member in members} == files


@pytest.mark.parametrize("tar_format", ["gnu", "pax"])
@pytest.mark.parametrize("length", [99, 100, 101, 256, 1024])
def test_long_names_are_whole(tar_format: str, length: int) -> None:
    name = "n" * (length - 5) + ".vmdk"
    assert names(archive({"vm.ovf": b"x", name: b"data"}, FORMATS[tar_format])) == ["vm.ovf", name]


@pytest.mark.parametrize("tar_format", ["gnu", "pax"])
def test_names_longer_than_the_limit_are_refused(tar_format: str) -> None:
    with pytest.raises(CorruptImage, match="1025 bytes, at most 1024"):
        index(archive({"n" * 1025: b"data"}, FORMATS[tar_format]))


def test_ustar_prefix_comes_before_the_name() -> None:
    name = "p" * 150 + "/" + "n" * 100
    assert names(archive({name: b"x"})) == [name]


def test_gnu_headers_have_no_prefix() -> None:
    assert names(header(magic=b"ustar ", version=b" \0", prefix=b"12345670123") + END) == ["vm.ovf"]


@pytest.mark.parametrize("tar_format", ["gnu", "pax"])
def test_names_outside_ascii_are_utf8(tar_format: str) -> None:
    assert names(archive({"disque-é.vmdk": b"x"}, FORMATS[tar_format])) == ["disque-é.vmdk"]


def test_names_that_are_not_utf8_stay_distinct() -> None:
    data = header(b"disque-\xe9.vmdk") + header(b"disque-\xe8.vmdk") + END
    assert names(data) == ["disque-\udce9.vmdk", "disque-\udce8.vmdk"]


def test_old_v7_headers_are_read() -> None:
    data = header(size=b"        5 \0 ", typeflag=b"\0", magic=b"", version=b"") + b"hello".ljust(512, b"\0") + END
    assert is_tar(data)
    assert [(member.name, member.size) for member in index(data).members] == [("vm.ovf", 5)]


def test_v7_headers_made_by_gnu_tar_are_read(tmp_path: Path) -> None:
    (tmp_path / "vm.ovf").write_bytes(b"x" * 700)
    subprocess.run(["tar", "--format=v7", "-cf", "vm.ova", "vm.ovf"], cwd=tmp_path, check=True)
    data = (tmp_path / "vm.ova").read_bytes()
    assert is_tar(data[:512])
    assert [(member.name, member.size) for member in index(data).members] == [("vm.ovf", 700)]


class SparseArchive:
    """An archive of which only headers and the ends of members are there; the rest reads as zeros."""

    name = "big.ova"

    def __init__(self, pieces: Mapping[int, bytes], size: int) -> None:
        self.pieces = pieces
        self.size = size
        self.reads: list[tuple[int, int]] = []

    def read_at(self, offset: int, length: int, /) -> bytes:
        self.reads.append((offset, length))
        data = bytearray(length)
        for start, piece in self.pieces.items():
            if offset <= start < offset + length:
                data[start - offset : start - offset + len(piece)] = piece
        return bytes(data[:length])

    def close(self) -> None:
        pass


@pytest.mark.parametrize("size", [(8 << 30) - 1, 8 << 30, 5 << 40])
@pytest.mark.parametrize("tar_format", ["gnu", "pax"])
def test_members_of_8_gib_and_more(tar_format: str, size: int) -> None:
    member = tarfile.TarInfo("disk1.vmdk")
    member.size = size
    head = member.tobuf(FORMATS[tar_format])
    second = len(head) + -(-size // 512) * 512
    blocks = {offset: head[offset : offset + 512] for offset in range(0, len(head), 512)}
    source = SparseArchive({**blocks, second: header(b"disk2.vmdk")}, second + 512 + 1024)
    found = read_tar_index(source)
    assert [(m.name, m.offset, m.size) for m in found.members] == [
        ("disk1.vmdk", len(head), size),
        ("disk2.vmdk", second + 512, 0),
    ]


def test_base_256_size_of_the_gnu_manual() -> None:
    size = bytes.fromhex("80 00 00 00 00 00 00 02 00 00 00 00")
    source = SparseArchive({0: header(size=size)}, 512 + (8 << 30) + 1024)
    assert [member.size for member in read_tar_index(source).members] == [8 << 30]


def test_headers_and_what_follows_them_closely_are_read() -> None:
    second = 512 + (1 << 20)
    source = SparseArchive({0: header(size=b"00004000000\0"), second: header(b"disk1.vmdk")}, second + 1536)
    assert len(read_tar_index(source).members) == 2
    assert source.reads == [(0, 16384), (second, 1536), (second + 1024, 512)]


@pytest.mark.parametrize(("size", "reads"), [(15360, 1), (15361, 2)])
def test_a_header_is_read_along_if_all_of_it_is_within_16_kib(size: int, reads: int) -> None:
    second = 512 + -(-size // 512) * 512
    source = SparseArchive({0: header(size=b"%011o\0" % size), second: header(b"b")}, second + 512)
    assert [member.name for member in read_tar_index(source).members] == ["vm.ovf", "b"]
    assert len(source.reads) == reads


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513])
def test_the_next_header_follows_the_padding(size: int) -> None:
    data = archive({"a": b"x" * size, "b": b"y"})
    assert [member.header_offset for member in index(data).members] == [0, 512 + -(-size // 512) * 512]


def test_pax_size_replaces_the_header_s() -> None:
    data = pax(b"11 size=5\n".replace(b"11", b"10")) + header() + b"hello".ljust(512, b"\0") + END
    assert [member.size for member in index(data).members] == [5]


def test_pax_path_goes_before_a_gnu_long_name() -> None:
    long_name = header(b"././@LongLink", size=b"%011o\0" % 5, typeflag=b"L") + b"long\0".ljust(512, b"\0")
    assert names(long_name + pax(b"12 path=pax\n") + header() + END) == ["pax"]


def test_pax_header_counts_for_one_member_only() -> None:
    assert names(pax(b"12 path=pax\n") + header() + header(b"other") + END) == ["pax", "other"]


def test_global_headers_that_say_nothing_of_members_are_passed_over() -> None:
    record = b"19 comment=0123456\n"
    data = header(b"g", size=b"%011o\0" % len(record), typeflag=b"g") + record.ljust(512, b"\0") + header() + END
    assert names(data) == ["vm.ovf"]


def test_long_link_names_are_passed_over() -> None:
    data = header(size=b"%011o\0" % 5, typeflag=b"K") + b"link\0".ljust(512, b"\0") + header() + END
    assert names(data) == ["vm.ovf"]


def test_directories_are_no_members(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "vm.ovf").write_bytes(b"x")
    subprocess.run(["tar", "-cf", "vm.ova", "./sub"], cwd=tmp_path, check=True)
    assert names((tmp_path / "vm.ova").read_bytes()) == ["sub/vm.ovf"]


def test_the_folder_itself_is_no_member(tmp_path: Path) -> None:
    (tmp_path / "vm.ovf").write_bytes(b"x")
    data = subprocess.run(["tar", "-c", "."], cwd=tmp_path, check=True, capture_output=True).stdout
    assert names(data) == ["vm.ovf"]


def test_companions_of_members_are_ignored() -> None:
    ignored = [b"._vm.ovf", b"sub/._disk.vmdk", b"PaxHeader/vm.ovf", b"sub/PaxHeaders.1234/disk.vmdk"]
    data = b"".join(header(name) for name in ignored) + header() + END
    assert names(data) == ["vm.ovf"]


def test_names_that_only_look_like_companions_are_members() -> None:
    assert names(header(b"PaxHeader") + header(b"a._b") + END) == ["PaxHeader", "a._b"]


def test_missing_end_blocks_are_a_finding() -> None:
    found = index(header())
    assert [member.name for member in found.members] == ["vm.ovf"]
    assert [finding.rule for finding in found.findings] == ["tar-no-end"]


def test_missing_padding_of_the_last_member_is_a_finding() -> None:
    data = archive({"vm.ovf": b"hello"})[: 512 + 5]
    assert [finding.rule for finding in index(data).findings] == ["tar-no-end"]


def test_one_zero_block_ends_the_archive() -> None:
    assert index(header() + bytes(512)).findings == ()


@pytest.mark.parametrize("padding", [0, 512, 10240, 1 << 20])
def test_any_amount_of_zero_padding_is_fine(padding: int) -> None:
    assert index(header() + END + bytes(padding)).findings == ()


def test_data_after_the_end_is_a_finding() -> None:
    found = index(header() + END + header(b"hidden"))
    assert [member.name for member in found.members] == ["vm.ovf"]
    assert [finding.rule for finding in found.findings] == ["tar-trailing-data"]


def test_signed_checksums_of_old_programs_are_right() -> None:
    block = bytearray(header("é.ovf".encode()))
    block[148:156] = b" " * 8
    signed = sum(byte - 256 if byte > 127 else byte for byte in block)
    block[148:156] = b"%06o\0 " % signed
    assert names(bytes(block) + END) == ["é.ovf"]


def test_times_that_make_no_sense_are_none() -> None:
    times = [b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-0000000001\0", b"not a number"]
    data = b"".join(header(b"m%d" % number, mtime=mtime) for number, mtime in enumerate(times)) + END
    assert [member.mtime for member in index(data).members] == [0o77777777777, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("typeflag", "error", "kind"),
    [
        (b"1", UnsafeReference, "a hard link"),
        (b"2", UnsafeReference, "a symbolic link"),
        (b"3", UnsupportedFeature, "a character device"),
        (b"4", UnsupportedFeature, "a block device"),
        (b"6", UnsupportedFeature, "a FIFO"),
        (b"7", UnsupportedFeature, "a contiguous file"),
        (b"S", UnsupportedFeature, "a GNU sparse file"),
        (b"Z", UnsupportedFeature, "type b'Z' is not known"),
    ],
)
def test_everything_but_regular_files_is_refused_by_name(typeflag: bytes, error: type[DiskfsError], kind: str) -> None:
    with pytest.raises(error, match=kind) as caught:
        index(header() + header(b"evil", typeflag=typeflag, linkname=b"/etc/passwd") + END)
    assert "vm.ova: tar header at offset 0x200, member 'evil'" in str(caught.value)


def test_the_second_of_two_equal_names_is_refused() -> None:
    with pytest.raises(CorruptImage, match="the name was there before, at offset 0x0"):
        index(header(b"vm.ovf") + header(b"./vm.ovf") + END)


def test_a_member_that_goes_past_the_end_is_named() -> None:
    data = archive({"vm.ovf": b"x", "disk1.vmdk": b"y" * 1000})
    whole = 512 + 512 + 512 + 1000
    assert len(index(data[:whole]).members) == 2
    with pytest.raises(TruncatedImage, match=r"member 'disk1.vmdk': 1000 bytes from 0x600, the file ends at 0x9e7"):
        index(data[: whole - 1])


@pytest.mark.parametrize("cut", [512, 1024, 1025])
def test_an_extended_header_without_its_member_is_incomplete(cut: int) -> None:
    with pytest.raises(TruncatedImage):
        index((pax(b"12 path=pax\n") + header())[:cut])


def test_damage_after_the_first_member_is_not_taken_for_the_end() -> None:
    damaged = bytearray(header(b"disk1.vmdk"))
    damaged[0] ^= 1
    with pytest.raises(CorruptImage, match="offset 0x200: its checksum is wrong: the archive is damaged there"):
        index(header() + bytes(damaged) + END)


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (header(), True),
        (header(magic=b"ustar ", version=b" \0"), True),
        (header(magic=b"", version=b""), True),
        (header(b"\x1b[2J", magic=b"", version=b""), False),
        (header(b"\xff", magic=b"", version=b""), False),
        (header(b"", magic=b"", version=b""), False),
        (header(typeflag=b"x", magic=b"", version=b""), False),
        (header(magic=b"other!"), False),
        (header()[:511], False),
        (bytes(512), False),
        (b"KDMV".ljust(512, b"\0"), False),
        (header()[:148] + b"0000000\0" + header()[156:], False),
    ],
)
def test_is_tar_goes_by_checksum_and_magic(data: bytes, answer: bool) -> None:
    assert is_tar(data) is answer


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../b", "a/..", "..", "a\\b", "C:x", "c:/x", "a\0b", "\\\\host\\share"]
)
def test_paths_that_may_not_be_used(path: str) -> None:
    assert path_problem(path) is not None


@pytest.mark.parametrize("path", ["vm.ovf", "a/b/c", "..vmdk", "a..b/c", "...", "./vm.ovf", "a b", "é", "disk:1"])
def test_paths_that_may_be_used(path: str) -> None:
    assert path_problem(path) is None


@pytest.mark.parametrize(
    ("path", "expected"), [("./vm.ovf", "vm.ovf"), ("a//b/./c", "a/b/c"), ("a/", "a"), ("./", ""), (".", "")]
)
def test_normalised_paths(path: str, expected: str) -> None:
    assert normalised_path(path) == expected
