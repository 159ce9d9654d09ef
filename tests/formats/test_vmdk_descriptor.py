"""The text descriptor, with lines as VMware's, VirtualBox's and QEMU's programs write them."""

import contextlib
import time
import warnings

import pytest

from diskfs_formats.errors import CorruptImage
from diskfs_formats.vmdk.descriptor import (
    MAX_DESCRIPTOR_SIZE,
    MAX_EXTENT_LINES,
    NO_PARENT,
    Descriptor,
    ExtentLine,
    is_descriptor,
    parse_descriptor,
)

SPECIFICATION_EXAMPLE = b"""\
# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="twoGbMaxExtentSparse"

# Extent description
RW 4192256 SPARSE "test-s001.vmdk"
RW 4192256 SPARSE "test-s002.vmdk"
RW 2101248 SPARSE "test-s003.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "ide"
ddb.geometry.sectors = "63"
ddb.geometry.heads = "16"
ddb.geometry.cylinders = "10402"
"""


def parsed(text: str | bytes) -> Descriptor:
    return parse_descriptor(text.encode() if isinstance(text, str) else text, "disk.vmdk")


def test_a_descriptor_in_the_form_of_the_specification() -> None:
    found = parsed(SPECIFICATION_EXAMPLE)
    assert found.create_type == "twoGbMaxExtentSparse"
    assert found.cid == 0xFFFFFFFE
    assert found.parent_cid == NO_PARENT
    assert [line.sectors for line in found.extents] == [4192256, 4192256, 2101248]
    assert [line.file_name for line in found.extents] == ["test-s001.vmdk", "test-s002.vmdk", "test-s003.vmdk"]
    assert found.sectors == 4192256 + 4192256 + 2101248
    assert found.values["ddb.geometry.cylinders"] == "10402"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('RW 4192256 SPARSE "a-s001.vmdk"', ExtentLine("RW", 4192256, "SPARSE", "a-s001.vmdk", 0)),
        ('RDONLY 33554432 SPARSE "stream.vmdk"', ExtentLine("RDONLY", 33554432, "SPARSE", "stream.vmdk", 0)),
        ('RW 1024 FLAT "a b-flat.vmdk" 63', ExtentLine("RW", 1024, "FLAT", "a b-flat.vmdk", 63)),
        ('RW 1024 VMFS "a-flat.vmdk"', ExtentLine("RW", 1024, "VMFS", "a-flat.vmdk", 0)),
        ('RW 1024 VMFS "a-flat.vmdk" 0', ExtentLine("RW", 1024, "VMFS", "a-flat.vmdk", 0)),
        ("RW 1024 ZERO", ExtentLine("RW", 1024, "ZERO", None, 0)),
        ("NOACCESS 63 ZERO ", ExtentLine("NOACCESS", 63, "ZERO", None, 0)),
        ('rw 7 flat "x"', ExtentLine("RW", 7, "FLAT", "x", 0)),
        ('RW\t7\tFLAT\t"x"\t1', ExtentLine("RW", 7, "FLAT", "x", 1)),
        ('  RW 7 FLAT "x" 1  ', ExtentLine("RW", 7, "FLAT", "x", 1)),
        ('RW 7 FLAT ""', ExtentLine("RW", 7, "FLAT", "", 0)),
        (
            'RW 63 FLAT "\\\\.\\PhysicalDrive0" 0 partitionUUID 1234 device 7',
            ExtentLine("RW", 63, "FLAT", "\\\\.\\PhysicalDrive0", 0),
        ),
        ('RW 9999999999999999999 FLAT "x"', ExtentLine("RW", 9999999999999999999, "FLAT", "x", 0)),
    ],
)  # fmt: skip
def test_an_extent_line(line: str, expected: ExtentLine) -> None:
    assert parsed(line).extents == (expected,)


@pytest.mark.parametrize(
    "line",
    [
        "RW",
        "RW 12",
        "RW x SPARSE",
        "RW -1 SPARSE",
        "RW 12 SPARSE noquotes.vmdk",
        'RW 12 SPARSE "open.vmdk',
        'RW 12 SPARSE"x"',
        "RW 0x10 ZERO",
        "RW 1.5 ZERO",
        "RW 12345678901234567890 ZERO",
        "RW \u0661\u0662 ZERO",
        'RW 12 \u017fPARSE "x"',
        'RW 12 SPARSE "x"y',
    ],
)
def test_a_line_that_only_looks_like_an_extent_is_refused(line: str) -> None:
    with pytest.raises(CorruptImage, match=r"disk\.vmdk: descriptor line 2 is not an extent line"):
        parsed("version=1\n" + line)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_line_endings(ending: str) -> None:
    found = parsed(SPECIFICATION_EXAMPLE.decode().replace("\n", ending))
    assert found == parsed(SPECIFICATION_EXAMPLE)


@pytest.mark.parametrize("mark", ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_other_line_separators_do_not_end_a_line(mark: str) -> None:
    assert parsed(f'# remark{mark}RW 8 SPARSE "x"\nRW 9 SPARSE "a{mark}RW 7 ZERO"').extents == (
        ExtentLine("RW", 9, "SPARSE", f"a{mark}RW 7 ZERO", 0),
    )


def test_the_text_ends_at_the_first_nul() -> None:
    assert parsed(b'RW 8 SPARSE "a"\n\0RW 9 SPARSE "b"\n').sectors == 8


@pytest.mark.parametrize(
    "line",
    ['createType="vmfs"', "createType=vmfs", "CREATETYPE = vmfs ", 'createtype  =  "vmfs"  ', "\tcreateType=vmfs"],
)
def test_keys_are_read_whatever_their_case_spaces_and_quotes(line: str) -> None:
    assert parsed(line).create_type == "vmfs"


def test_the_first_of_two_equal_keys_counts() -> None:
    assert parsed("CID=1\ncid=2").cid == 1


@pytest.mark.parametrize(
    ("text", "cid"), [("a454774a", 0xA454774A), ("1", 1), ("FFFFFFFF", 0xFFFFFFFF), ("xyz", None), ("", None)]
)
def test_cid(text: str, cid: int | None) -> None:
    assert parsed(f"CID={text}").cid == cid


def test_no_parent_cid_means_no_parent() -> None:
    assert parsed("version=1").parent_cid == NO_PARENT


@pytest.mark.parametrize("text", ["", "zz", "123456789", "0x1234567", "-1", "ffffffff ffffffff", "\x1b[31m"])
def test_a_parent_cid_that_is_no_number_is_not_taken_for_no_parent(text: str) -> None:
    with pytest.raises(CorruptImage, match="parentCID") as raised:
        parsed(f"parentCID={text}")
    assert str(raised.value).isprintable()


def test_the_count_of_extent_lines_is_bounded() -> None:
    line = "RW 1 ZERO\n"
    assert len(parsed(line * MAX_EXTENT_LINES).extents) == MAX_EXTENT_LINES
    with pytest.raises(CorruptImage, match="over 4096 extent lines"):
        parsed(line * (MAX_EXTENT_LINES + 1))


# ---- encodings ----


@pytest.mark.parametrize(
    ("encoding", "codec", "name"),
    [
        ("UTF-8", "utf-8", "Festplatte-größer.vmdk"),
        ("windows-1252", "cp1252", "façade….vmdk"),
        ("GBK", "gbk", "磁盘.vmdk"),
        ("Big5", "big5", "磁碟.vmdk"),
        ("Shift_JIS", "shift_jis", "ディスク.vmdk"),
        ("EUC-KR", "euc-kr", "디스크.vmdk"),
        ("ISO-8859-15", "iso8859-15", "€.vmdk"),
    ],
)
def test_the_declared_encoding_is_used(encoding: str, codec: str, name: str) -> None:
    text = f'version=1\nencoding="{encoding}"\nRW 8 SPARSE "{name}"\n'
    assert parsed(text.encode(codec)).extents[0].file_name == name


@pytest.mark.parametrize(
    "encoding",
    ["", "klingon", "zlib", "hex", "bz2", "rot13", "base64", "idna", "punycode", "undefined", "mbcs", "utf-16",
     "utf-32", "cp037", "cp500", "unicode_escape", "unicode-escape", "raw_unicode_escape", "utf-7", "aliases", "..",
     "a" * 40],
)  # fmt: skip
def test_an_encoding_that_would_change_the_text_is_not_used(encoding: str) -> None:
    text = f'version=1\nencoding="{encoding}"\nparentCID=12345678\nRW 8 SPARSE "\\x41\\n+AEE-\\d"\n'
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = parsed(text)
    assert found.parent_cid == 0x12345678
    assert found.extents == (ExtentLine("RW", 8, "SPARSE", "\\x41\\n+AEE-\\d", 0),)


def test_bytes_that_are_not_of_the_encoding_survive() -> None:
    assert parsed(b'RW 8 SPARSE "\xff\xfe"').extents[0].file_name == "\udcff\udcfe"


# ---- junk ----


@pytest.mark.parametrize(
    "junk",
    [
        b"\n" * MAX_DESCRIPTOR_SIZE,
        b" " * MAX_DESCRIPTOR_SIZE,
        b"\r" * MAX_DESCRIPTOR_SIZE,
        b"a=" + b" " * (MAX_DESCRIPTOR_SIZE - 3) + b"b",
        b'a="x' + b" " * (MAX_DESCRIPTOR_SIZE - 6) + b'y"',
        b"a" * MAX_DESCRIPTOR_SIZE,
        b"a" + b" " * (MAX_DESCRIPTOR_SIZE - 2) + b"b",
        b"encoding" + b" " * (MAX_DESCRIPTOR_SIZE - 8),
        (b"encoding" + b" " * 504) * (MAX_DESCRIPTOR_SIZE // 512),
        b"encoding=" * (MAX_DESCRIPTOR_SIZE // 9),
        b"# " * (MAX_DESCRIPTOR_SIZE // 2),
        b"=\n" * (MAX_DESCRIPTOR_SIZE // 2),
        b'"' * MAX_DESCRIPTOR_SIZE,
    ],
    ids=lambda junk: f"{junk[:12]!r}",
)
def test_a_mebibyte_of_junk_is_parsed_at_once(junk: bytes) -> None:
    began = time.process_time()
    assert parsed(junk).extents == ()
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "line",
    [
        "RW" + " " * 1_000_000 + "x",
        "RW 1" + " " * 1_000_000 + "!",
        "RW 1 " + "A" * 1_000_000 + "!",
        "RW 1 FLAT" + " " * 1_000_000 + "x",
        'RW 1 FLAT "' + "x" * 1_000_000,
        'RW 1 FLAT "x" 1' + " " * 1_000_000 + "\u00a0",
        'RW 1 FLAT "x"y' + " " * 1_000_000,
        "RW " + "1" * 1_000_000,
    ],
    ids=lambda line: f"{line[:16]!r}",
)
def test_a_line_of_a_mebibyte_is_matched_at_once(line: str) -> None:
    began = time.process_time()
    with contextlib.suppress(CorruptImage):
        parsed(line)
    assert time.process_time() - began < 1


# ---- recognising ----


@pytest.mark.parametrize(
    "text",
    [
        b"# Disk DescriptorFile\nversion=1\n",
        b"# Disk Descriptor File\r\nversion=1\r\n",
        b"#Disk DescriptorFile\n\n \nversion = 2 \n",
        b"version=3",
        b'VERSION="1"\n',
        b"#\n" * 1000 + b"version=1\n",
        b"version=1\0\0\0",
    ],
)
def test_a_descriptor_is_recognised(text: bytes) -> None:
    assert is_descriptor(text)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\0version=1", b"version=4\n", b"version=\n", b"version\n", b"versions=1\n", b"CID=1\nversion=1\n",
        b"# only\n", b"[section]\nversion=1\n", b"\xff\xfe", bytes(4096), b"#" * 8192 + b"\nversion=1",
    ],
)  # fmt: skip
def test_other_text_is_not(text: bytes) -> None:
    assert not is_descriptor(text)


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("", 512),
        ('ddb.logicalSectorSize = "4096"', 4096),
        ("ddb.logicalsectorsize=4096", 4096),
        ('ddb.logicalSectorSize = "512"', 512),
        ('ddb.logicalSectorSize = "0"', 512),
        ('ddb.logicalSectorSize = "1024"', 512),
        ('ddb.logicalSectorSize = "x"', 512),
        ('ddb.physicalSectorSize = "4096"', 512),
    ],
)
def test_the_logical_sector_size_is_what_open_vmdk_writes(said: str, size: int) -> None:
    assert parsed(f"version=1\n{said}\n").sector_size == size
