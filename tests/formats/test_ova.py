"""Appliances: members, disks in order, chunks, compression and manifests, against GNU tar and the corpus."""

import gzip
import hashlib
import io
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from diskfs_formats.driver import NoRelatedFiles
from diskfs_formats.errors import (
    CorruptImage,
    DiskfsError,
    ImageError,
    OutOfRange,
    ParentUnavailable,
    TruncatedImage,
    UnsafeReference,
    UnsupportedFeature,
)
from diskfs_formats.gzipped import GzipSource
from diskfs_formats.ova import Appliance, open_ova, open_ovf
from diskfs_formats.ova_disks import ApplianceDisk
from diskfs_formats.source import ByteSource, MemorySource
from tests.helpers import CorpusRow, assert_same_bytes, corpus_rows, sha256_of

APPLIANCES = [row for row in corpus_rows() if row.path.endswith(".ova") and not row.hostile]
LISTED = [row for row in APPLIANCES if any(other.path.startswith(row.path + ".d/") for other in corpus_rows())]
"""Those whose members have rows of their own in the corpus's manifest."""


def descriptor(*files: str, disks: str | None = None, folder: str = "") -> bytes:
    """A descriptor with these File elements' attributes, and a disk for each unless `disks` says otherwise."""
    elements = "".join(f'<File ovf:id="f{number}" {attributes}/>' for number, attributes in enumerate(files))
    if disks is None:
        disks = "".join(
            f'<Disk ovf:diskId="d{number}" ovf:fileRef="f{number}" ovf:capacity="1"/>' for number in range(len(files))
        )
    return (
        '<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">'
        f"<References>{elements}</References><DiskSection><Info/>{disks}</DiskSection>{folder}</Envelope>"
    ).encode()


def href(name: str, **attributes: object) -> str:
    """The attributes of a File element."""
    return f'ovf:href="{name}"' + "".join(f' ovf:{key}="{value}"' for key, value in attributes.items())


def archive(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def ova(files: Mapping[str, bytes]) -> Appliance:
    return open_ova(MemorySource(archive(files), "vm.ova"))


def content(source: ByteSource) -> bytes:
    return source.read_at(0, source.size)


def rules(found: Appliance | ApplianceDisk) -> list[str]:
    return [finding.rule for finding in found.findings]


class Folder(NoRelatedFiles):
    """The files beside a descriptor, as the layer above hands them in; counts what is open."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files
        self.open_now: set[str] = set()

    def open(self, file_name: str, /) -> ByteSource:
        folder = self

        class Opened(MemorySource):
            def close(self) -> None:
                folder.open_now.discard(file_name)

        if "/" in file_name or "\\" in file_name or file_name in {"", ".", ".."}:
            raise UnsafeReference(f"{file_name!r} is no bare name")
        if file_name not in self.files:
            raise ParentUnavailable(f"{file_name!r} is missing")
        self.open_now.add(file_name)
        return Opened(self.files[file_name], "/data/" + file_name)


def ovf(files: Mapping[str, bytes], name: str = "vm.ovf") -> Appliance:
    return open_ovf(MemorySource(files[name], f"/data/{name}"), Folder(files))


# The corpus


@pytest.mark.parametrize("row", APPLIANCES, ids=lambda row: row.path)
def test_members_are_those_of_gnu_tar(row: CorpusRow, corpus: Path) -> None:
    path = corpus / row.path
    appliance = open_ova(MemorySource(path.read_bytes(), row.path))
    listed = subprocess.run(["tar", "--quoting-style=literal", "-tf", path], capture_output=True, check=True).stdout
    assert [member.name for member in appliance.members] == listed.decode().splitlines()
    for name, source in appliance.members:
        extracted = subprocess.run(["tar", "-xOf", path, name], capture_output=True, check=True).stdout
        assert_same_bytes(content(source), extracted)


@pytest.mark.parametrize("row", LISTED, ids=lambda row: row.path)
def test_disks_are_those_of_the_manifest(row: CorpusRow, corpus: Path, manifest: list[CorpusRow]) -> None:
    prefix = row.path + ".d/"
    expected = {other.path.removeprefix(prefix): other for other in manifest if other.path.startswith(prefix)}
    appliance = open_ova(MemorySource((corpus / row.path).read_bytes(), row.path))
    names = [disk.file_name.removesuffix(".gz") for disk in appliance.disks]
    # Rows are in the order of the archive; of these, one has machines in another order than their files.
    assert (sorted(names) if "vapp_with_3_vms" in row.path else names) == list(expected)
    for name, disk in zip(names, appliance.disks, strict=True):
        assert sha256_of([content(disk.open())]) == expected[name].sha256_file


def test_disks_of_three_machines_are_in_the_order_of_the_machines(corpus: Path) -> None:
    data = (corpus / "go-vcloud-director/vapp_with_3_vms.ova").read_bytes()
    appliance = open_ova(MemorySource(data, "vapp.ova"))
    assert [system.id for system in appliance.descriptor.systems] == ["thirdVM", "secondVM", "firstVM"]
    assert [disk.capacity for disk in appliance.disks] == [12 << 20, 11 << 20, 10 << 20]


def from_corpus(corpus: Path, name: str) -> tuple[Path, Appliance]:
    path = corpus / "appliances" / name
    return path, open_ova(MemorySource(path.read_bytes(), name))


def extracted(path: Path, *names: str) -> bytes:
    return b"".join(
        subprocess.run(["tar", "-xOf", path, name], capture_output=True, check=True).stdout for name in names
    )


def test_two_disks(corpus: Path) -> None:
    path, appliance = from_corpus(corpus, "two-disks.ova")
    assert [disk.file_name for disk in appliance.disks] == ["vm-disk1.vmdk", "vm-disk2.vmdk"]
    assert [disk.capacity for disk in appliance.disks] == [530583040, 67115520]
    for disk in appliance.disks:
        assert_same_bytes(content(disk.open()), extracted(path, disk.file_name))
    assert list(appliance.verify()) == []
    assert rules(appliance) == []


def test_chunked_disk(corpus: Path) -> None:
    path, appliance = from_corpus(corpus, "chunked.ova")
    (disk,) = appliance.disks
    assert (disk.file_name, disk.chunk_size) == ("c.vmdk", 100004)
    chunks = [f"c.vmdk.{number:09}" for number in range(5)]
    assert_same_bytes(content(disk.open()), extracted(path, *chunks))


def test_gzipped_disks(corpus: Path) -> None:
    path, appliance = from_corpus(corpus, "gz-disks.ova")
    assert [disk.file_name for disk in appliance.disks] == ["a.vmdk.gz", "b.vmdk.gz"]
    for disk in appliance.disks:
        assert_same_bytes(content(disk.open()), gzip.decompress(extracted(path, disk.file_name)))
        assert rules(disk) == []
    assert list(appliance.verify()) == []


def test_disks_of_several_formats_with_names_that_need_decoding(corpus: Path) -> None:
    path, appliance = from_corpus(corpus, "mixed.ova")
    assert [disk.file_name for disk in appliance.disks] == ["disk one.vmdk", "disque-é.vhd", "disk3.vhdx"]
    for disk in appliance.disks:
        assert_same_bytes(content(disk.open()), extracted(path, disk.file_name))


def test_descriptor_beside_its_files(corpus: Path) -> None:
    folder = corpus / "cot"
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".tar"}
    appliance = ovf(files, "input.ovf")
    assert [member.name for member in appliance.members] == ["input.ovf", "input.mf", "input.vmdk"]
    assert appliance.container == "ovf"
    (disk,) = appliance.disks
    assert_same_bytes(content(disk.open()), files["input.vmdk"])
    # Two of its files are not there, and the manifest says so too.
    assert rules(appliance) == ["ova-file-unavailable", "ova-file-unavailable"]
    assert [finding.rule for finding in appliance.verify()] == ["manifest-file-missing"] * 2


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("vbox-validationkit/tdAppliance1-t1.ova", ["manifest-empty"]),
        ("vbox-validationkit/tdAppliance1-t2.ova", ["manifest-unlisted"]),
        ("vbox-validationkit/tdAppliance1-t2-ovftool-4.1.0.ova", []),
        ("vbox-validationkit/tdAppliance1-t3-ovftool-4.1.0.ova", []),
        ("vm-operator/uber.ova", []),
        ("vm-operator/ttylinux-pc_i486-16.1.ova", []),
        ("go-vcloud-director/vapp_with_3_vms.ova", []),
        ("go-vcloud-director/test_vapp_template.ova", ["manifest-missing"]),
        ("cdi/fake.ova", ["manifest-unlisted"]),
    ],
)
def test_manifests_of_real_appliances(path: str, expected: list[str], corpus: Path) -> None:
    appliance = open_ova(MemorySource((corpus / path).read_bytes(), path))
    assert [finding.rule for finding in appliance.verify()] == expected


def test_an_appliance_without_disks_opens(corpus: Path) -> None:
    data = (corpus / "vbox-validationkit/tdAppliance1-t1.ova").read_bytes()
    appliance = open_ova(MemorySource(data, "t1.ova"))
    assert appliance.disks == ()
    assert rules(appliance) == ["ova-no-disks"]


@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        ("hostile/glance/testserver-bad-ovf.ova", CorruptImage, "root element is 'OpenTag'"),
        ("hostile/glance/testserver-no-ovf.ova", CorruptImage, "this is a tar, but no appliance"),
        ("hostile/glance/testserver-not-tar.ova", CorruptImage, "no tar archive"),
        ("cot/test.tar", CorruptImage, "this is a tar, but no appliance"),
    ],
)
def test_what_is_no_appliance_says_why(path: str, error: type[DiskfsError], text: str, corpus: Path) -> None:
    with pytest.raises(error, match=text):
        open_ova(MemorySource((corpus / path).read_bytes(), path))


# Which member is what


DISK = b"disk" * 300


def test_the_first_descriptor_is_used_if_it_is_the_first_member() -> None:
    appliance = ova({"b.ovf": descriptor(href("x")), "a.ovf": b"nonsense", "x": DISK})
    assert appliance.descriptor_name == "b.ovf"
    assert rules(appliance) == ["ova-several-descriptors"]


def test_a_single_descriptor_may_come_later() -> None:
    appliance = ova({"x": DISK, "sub/VM.OVF": descriptor(href("x"))})
    assert appliance.descriptor_name == "sub/VM.OVF"
    assert rules(appliance) == ["ovf-not-first"]
    assert content(appliance.disks[0].open()) == DISK


def test_several_descriptors_of_which_none_is_first_are_refused() -> None:
    with pytest.raises(CorruptImage, match=r"2 descriptors \('a\.ovf', 'b\.ovf'\) and none is the first member"):
        ova({"x": DISK, "a.ovf": descriptor(), "b.ovf": descriptor()})


def test_hrefs_are_relative_to_the_descriptor_s_folder() -> None:
    appliance = ova({"sub/vm.ovf": descriptor(href("x")), "x": b"wrong", "sub/x": DISK})
    assert content(appliance.disks[0].open()) == DISK


def test_the_manifest_has_the_descriptor_s_name() -> None:
    appliance = ova({"vm.ovf": descriptor(), "other.mf": b"", "VM.MF": b""})
    assert appliance.manifest_name == "VM.MF"
    assert "manifest-name" not in rules(appliance)


def test_the_only_manifest_is_used_whatever_its_name() -> None:
    appliance = ova({"vm.ovf": descriptor(), "other.mf": b"SHA1(gone)= " + b"0" * 40})
    assert appliance.manifest_name == "other.mf"
    assert "manifest-name" in rules(appliance)
    assert "manifest-file-missing" in [finding.rule for finding in appliance.verify()]


def test_of_several_manifests_with_other_names_none_is_used() -> None:
    appliance = ova({"vm.ovf": descriptor(), "a.mf": b"", "b.mf": b""})
    assert appliance.manifest_name is None
    assert "manifest-name" in rules(appliance)


def test_a_changed_member_is_found_by_its_digest() -> None:
    text = descriptor(href("x"))
    listed = f"SHA256(vm.ovf)= {hashlib.sha256(text).hexdigest()}\nSHA256(x)= {hashlib.sha256(DISK).hexdigest()}\n"
    files = {"vm.ovf": text, "vm.mf": listed.encode(), "x": DISK}
    assert list(ova(files).verify()) == []
    changed = {**files, "x": DISK[:-1] + b"!"}
    (finding,) = ova(changed).verify()
    assert (finding.rule, finding.severity.value) == ("manifest-digest", "error")


def test_a_manifest_that_is_too_long_is_a_finding() -> None:
    appliance = ova({"vm.ovf": descriptor(), "vm.mf": bytes((1 << 20) + 1)})
    assert [finding.rule for finding in appliance.verify()] == ["manifest-unreadable"]


# Disks


def test_members_and_disks_say_where_they_are() -> None:
    appliance = ova({"vm.ovf": descriptor(href("x\u202ey.vmdk")), "x\u202ey.vmdk": DISK})
    assert appliance.disks[0].open().name == "vm.ova:x\\u202ey.vmdk"
    assert [source.name for _, source in appliance.members] == ["vm.ova:vm.ovf", "vm.ova:x\\u202ey.vmdk"]


def test_a_disk_carries_what_the_descriptor_says() -> None:
    disk = '<Disk ovf:diskId="D" ovf:fileRef="f0" ovf:capacity="9" ovf:format="urn:f" ovf:parentRef="P"/>'
    (found,) = ova({"vm.ovf": descriptor(href("x", compression="gzip"), disks=disk), "x": gzip.compress(DISK)}).disks
    assert (found.index, found.disk_id, found.href, found.compression) == (0, "D", "x", "gzip")
    assert (found.capacity, found.format_uri, found.parent_ref) == (9, "urn:f", "P")


def test_a_missing_disk_does_not_keep_the_others_from_opening() -> None:
    appliance = ova({"vm.ovf": descriptor(href("gone"), href("/etc/passwd"), href("x")), "x": DISK})
    assert [rules(disk) for disk in appliance.disks] == [["ova-disk-unavailable"], ["ova-disk-unavailable"], []]
    with pytest.raises(CorruptImage, match="'gone', which is not in the appliance"):
        appliance.disks[0].open()
    with pytest.raises(UnsafeReference, match="'/etc/passwd' may not be used: it is absolute"):
        appliance.disks[1].open()
    assert content(appliance.disks[2].open()) == DISK


def test_a_disk_whose_file_is_not_listed_says_so() -> None:
    disk = '<Disk ovf:diskId="D" ovf:fileRef="nowhere" ovf:capacity="1"/>'
    (found,) = ova({"vm.ovf": descriptor(disks=disk)}).disks
    assert found.file_name == "nowhere"
    with pytest.raises(CorruptImage, match="'nowhere', which the descriptor's References section does not list"):
        found.open()


def test_a_size_that_is_wrong_is_a_finding() -> None:
    appliance = ova({"vm.ovf": descriptor(href("x", size=1), href("y", size=len(DISK))), "x": DISK, "y": DISK})
    assert [rules(disk) for disk in appliance.disks] == [["ovf-size"], []]


@pytest.mark.parametrize(
    ("compression", "packed", "expected"),
    [
        ("gzip", True, []),
        ("", True, ["ovf-compression"]),
        ("identity", True, ["ovf-compression"]),
        ("gzip", False, ["ovf-compression"]),
        ("identity", False, []),
    ],
)
def test_the_data_decides_whether_it_is_compressed(compression: str, packed: bool, expected: list[str]) -> None:
    data = gzip.compress(DISK) if packed else DISK
    (disk,) = ova({"vm.ovf": descriptor(href("x", compression=compression)), "x": data}).disks
    assert isinstance(disk.open(), GzipSource) is packed
    assert content(disk.open()) == DISK
    assert rules(disk) == expected


@pytest.mark.parametrize("compression", ["bzip2", "lzma", "none"])
def test_a_compression_that_is_not_read_is_refused_by_name(compression: str) -> None:
    (disk,) = ova({"vm.ovf": descriptor(href("x", compression=compression)), "x": DISK}).disks
    assert rules(disk) == ["ova-disk-unavailable"]
    with pytest.raises(UnsupportedFeature, match=f"'{compression}'"):
        disk.open()


def test_closing_one_disk_leaves_the_others_and_the_members_open() -> None:
    files = {"vm.ovf": descriptor(href("x"), href("y")), "x": DISK, "y": DISK}
    for appliance in (ova(files), ovf(files)):
        appliance.disks[0].open().close()
        assert content(appliance.disks[0].open()) == DISK
        assert content(appliance.disks[1].open()) == DISK
        assert [content(source) for _, source in appliance.members] == [files["vm.ovf"], DISK, DISK]


# Chunks


def chunked(sizes: list[int], chunk_size: int = 100, *, size: int | None = None, first: int = 0) -> Appliance:
    """An appliance whose disk is stored in chunks of these sizes."""
    data = bytes(range(256)) * 4
    files = {}
    offset = 0
    for number, length in enumerate(sizes, first):
        files[f"x.{number:09}"] = data[offset : offset + length]
        offset += length
    attributes = {"chunkSize": chunk_size} if size is None else {"chunkSize": chunk_size, "size": size}
    return ova({"vm.ovf": descriptor(href("x", **attributes)), **files})


@pytest.mark.parametrize("sizes", [[100, 100, 1], [100, 100], [100], [1], [100, 0]])
def test_chunks_are_joined(sizes: list[int]) -> None:
    (disk,) = chunked(sizes, size=sum(sizes)).disks
    assert disk.file_name == "x"
    assert_same_bytes(content(disk.open()), (bytes(range(256)) * 4)[: sum(sizes)])


@pytest.mark.parametrize(
    ("sizes", "error"),
    [
        ([100, 99, 100], TruncatedImage),
        ([99, 100], TruncatedImage),
        ([100, 101], CorruptImage),
        ([101], CorruptImage),
        ([100, 50, 0], TruncatedImage),
    ],
)
def test_chunks_of_the_wrong_size_are_refused(sizes: list[int], error: type[ImageError]) -> None:
    (disk,) = chunked(sizes).disks
    with pytest.raises(error, match="in chunks of 100 bytes: chunk"):
        disk.open()


@pytest.mark.parametrize(
    ("size", "error", "text"),
    [(201, TruncatedImage, "missing at the end"), (199, CorruptImage, "do not belong together")],
)
def test_chunks_that_do_not_add_up_are_refused(size: int, error: type[ImageError], text: str) -> None:
    (disk,) = chunked([100, 100], size=size).disks
    with pytest.raises(error, match=text):
        disk.open()


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_missing_chunk_is_named(missing: int) -> None:
    files = {f"x.{number:09}": bytes(100) for number in range(6) if number not in (missing, missing + 1)}
    files["vm.ovf"] = descriptor(href("x", chunkSize=100))
    for appliance in (ova({"vm.ovf": files["vm.ovf"], **files}), ovf({**files, f"x.{missing + 1:09}": bytes(100)})):
        with pytest.raises(CorruptImage, match=f"chunk {missing} is missing"):
            appliance.disks[0].open()


def test_a_missing_first_chunk_is_a_missing_file() -> None:
    with pytest.raises(CorruptImage, match="'x', which is not in the appliance"):
        chunked([100, 100], first=1).disks[0].open()


def test_a_chunk_size_that_was_not_made_use_of_is_passed_over() -> None:
    (disk,) = ova({"vm.ovf": descriptor(href("x", chunkSize=8589934591)), "x": DISK}).disks
    assert content(disk.open()) == DISK


def test_chunks_may_hold_one_compressed_file() -> None:
    packed = gzip.compress(bytes(range(256)) * 4)
    files = {f"x.{number:09}": packed[number * 100 : number * 100 + 100] for number in range(-(-len(packed) // 100))}
    (disk,) = ova({"vm.ovf": descriptor(href("x", chunkSize=100, compression="gzip")), **files}).disks
    assert_same_bytes(content(disk.open()), bytes(range(256)) * 4)


def test_pieces_without_a_chunk_size_are_not_guessed_about() -> None:
    (disk,) = ova({"vm.ovf": descriptor(href("x")), "x.000000000": DISK}).disks
    with pytest.raises(UnsupportedFeature, match="no chunkSize"):
        disk.open()


# Files beside a descriptor


def test_members_of_a_folder_are_those_that_the_descriptor_lists() -> None:
    text = descriptor(href("y"), href("x", chunkSize=100), href("vm.nvram"), disks="")
    files = {"vm.ovf": text, "vm.mf": b"", "y": DISK, "x.000000000": bytes(100), "x.000000001": b"", "other": b""}
    appliance = ovf(files)
    assert [member.name for member in appliance.members] == ["vm.ovf", "vm.mf", "y", "x.000000000", "x.000000001"]
    assert "ova-file-unavailable" in rules(appliance)


@pytest.mark.parametrize("name", ["http://host/vm.ovf?versionId=a/b", "s3://bucket/vm.ovf", "/data/vm.ovf", "vm.ovf"])
def test_the_descriptor_s_own_name_has_no_folder(name: str) -> None:
    folder = Folder({"vm.mf": b""})
    appliance = open_ovf(MemorySource(descriptor(), name), folder)
    assert (appliance.descriptor_name, appliance.manifest_name) == ("vm.ovf", "vm.mf")


def test_files_of_other_folders_are_not_opened() -> None:
    appliance = ovf({"vm.ovf": descriptor(href("sub/x"), href("../x")), "x": DISK})
    for disk in appliance.disks:
        with pytest.raises(UnsafeReference):
            disk.open()


def test_a_file_that_may_not_be_opened_does_not_stop_the_others() -> None:
    class Strict(Folder):
        def open(self, file_name: str, /) -> ByteSource:
            if file_name in {"x", "vm.mf"}:
                raise OutOfRange(f"{file_name} may not be read")
            return super().open(file_name)

    appliance = open_ovf(MemorySource(descriptor(href("x"), href("y")), "vm.ovf"), Strict({"y": DISK}))
    assert rules(appliance) == ["manifest-unreadable"]
    assert content(appliance.disks[1].open()) == DISK
    with pytest.raises(OutOfRange, match="x may not be read"):
        appliance.disks[0].open()


def test_closing_the_appliance_closes_every_file() -> None:
    files = {"vm.ovf": descriptor(href("x"), href("y")), "vm.mf": b"", "x": DISK, "y": DISK}
    folder = Folder(files)
    appliance = open_ovf(MemorySource(files["vm.ovf"], "vm.ovf"), folder)
    appliance.disks[0].open()
    assert folder.open_now == {"vm.mf", "x", "y"}
    appliance.close()
    assert folder.open_now == set()
    appliance.close()


def test_a_descriptor_that_is_refused_leaves_no_file_open() -> None:
    folder = Folder({"vm.mf": b""})
    with pytest.raises(CorruptImage):
        open_ovf(MemorySource(b"nonsense", "vm.ovf"), folder)
    assert folder.open_now == set()
