"""Deltas: what a child does not have comes from its parent, whatever the two are made of, if it is the right one."""

import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from diskfs.sources.locate import MAX_CHAIN
from diskfs_formats.driver import AbsentParent, DiskImage, NoRelatedFiles
from diskfs_formats.errors import CorruptImage, ImageError, ParentUnavailable
from diskfs_formats.extents import ExtentKind
from diskfs_formats.mapped import MappedImage
from diskfs_formats.source import MemorySource
from diskfs_formats.vmdk import VmdkDriver
from diskfs_formats.vmdk.image import VmdkImage
from tests.conformance.promises import (
    assert_both_sides,
    assert_map,
    assert_past_the_end,
    assert_random_ranges,
    assert_ready_bytes,
    assert_threads,
    assert_whole,
)
from tests.helpers import assert_same_bytes
from tests.samples.vmdk_builder import Layout, build, build_grains, descriptor_text, stamped, with_zero_grains
from tests.samples.vmdk_esx_builder import cowd, descriptor, sesparse
from tests.samples.vmdk_files import (
    Beside,
    assert_qemu_agrees,
    findings,
    opened,
    our_map,
    qemu_map,
    rules,
    run,
    runs,
    written,
)

SECTORS = 8 * 60 + 3
BASE = with_zero_grains(stamped(SECTORS, 1), 8, {4, 5, 30})
BASE_CID = "600d600d"
CHANGED = {2: 21, 3: 22, 5: 23, 31: 24, 59: 25, 60: 26}
"""Grain of eight sectors -> salt of what the child has there."""


def changed(base: bytes, *, zero: Sequence[int] = ()) -> bytes:
    """Return what a child with the grains of CHANGED shows over `base`."""
    data = bytearray(base)
    for grain, salt in CHANGED.items():
        data[grain * 4096 : (grain + 1) * 4096] = stamped(8, salt)[: len(data) - grain * 4096]
    for grain in zero:
        data[grain * 4096 : (grain + 1) * 4096] = bytes(len(data[grain * 4096 : (grain + 1) * 4096]))
    return bytes(data)


GRAINS = {grain: stamped(8, salt) for grain, salt in CHANGED.items()}
ONE_SECTOR_GRAINS = {
    grain * 8 + at: data[at * 512 : (at + 1) * 512]
    for grain, data in GRAINS.items()
    for at in range(8)
    if grain * 8 + at < SECTORS
}


def parent_files(kind: str) -> dict[str, str | bytes]:
    """Return the files of the parent `base.vmdk` in one of its forms."""

    def text(*lines: str) -> str:
        return descriptor(lines, "custom", cid=BASE_CID)

    match kind:
        case "flat":
            return {"base.vmdk": text(f'RW {SECTORS} VMFS "base-flat.vmdk"'), "base-flat.vmdk": BASE}
        case "split":
            half = 200
            bare = Layout(grain=8, descriptor="")
            return {
                "base.vmdk": text(f'RW {half} SPARSE "base-s001"', f'RW {SECTORS - half} SPARSE "base-s002"'),
                "base-s001": bytes(build(BASE[: half * 512], bare)),
                "base-s002": bytes(build(BASE[half * 512 :], bare)),
            }
        case "hosted":
            embedded = descriptor_text(SECTORS).replace("7d1c23ab", BASE_CID)
            return {"base.vmdk": bytes(build(BASE, Layout(grain=8, descriptor=embedded)))}
        case _:
            embedded = descriptor_text(SECTORS, compressed=True).replace("7d1c23ab", BASE_CID)
            return {"base.vmdk": bytes(build(BASE, Layout(grain=16, descriptor=embedded, compressed=True)))}


def child_files(kind: str, *, parent_cid: str = BASE_CID, hint: str = "base.vmdk") -> dict[str, str | bytes]:
    """Return the files of the child `child.vmdk` in one of its forms; those that can have grains 5 and 59 zeroed."""

    def text(*lines: str, create_type: str = "custom") -> str:
        return descriptor(lines, create_type, cid="c41d", parent_cid=parent_cid, hint=hint)

    match kind:
        case "cowd":
            delta = bytes(cowd(ONE_SECTOR_GRAINS, SECTORS, seed=1))
            return {"child.vmdk": text(f'RW {SECTORS} VMFSSPARSE "child-delta"'), "child-delta": delta}
        case "sesparse":
            delta = bytes(sesparse(GRAINS, SECTORS, seed=1))
            return {"child.vmdk": text(f'RW {SECTORS} SESPARSE "child-sesparse"'), "child-sesparse": delta}
        case "split":
            # The second extent begins in the middle of the disk, at no whole number of grains.
            lines = ('RW 204 SPARSE "child-s001"', f'RW {SECTORS - 204} SPARSE "child-s002"')
            bare = Layout(grain=1, descriptor="", shuffle=3)
            first = {number: data for number, data in ONE_SECTOR_GRAINS.items() if number < 204}
            second = {number - 204: data for number, data in ONE_SECTOR_GRAINS.items() if number >= 204}
            return {
                "child.vmdk": text(*lines),
                "child-s001": bytes(build_grains(first, 204, bare)),
                "child-s002": bytes(build_grains(second, SECTORS - 204, bare)),
            }
        case _:
            embedded = descriptor_text(SECTORS).replace("ffffffff", f'{parent_cid}\nparentFileNameHint="{hint}"')
            return {"child.vmdk": bytes(build_grains(GRAINS, SECTORS, Layout(grain=8, descriptor=embedded)))}


PARENTS = ("flat", "split", "hosted", "stream")
CHILDREN = ("cowd", "sesparse", "split", "hosted")


@pytest.mark.parametrize("parent", PARENTS)
@pytest.mark.parametrize("child", CHILDREN)
def test_every_child_over_every_parent(child: str, parent: str, tmp_path: Path) -> None:
    path = written(tmp_path, {**child_files(child), **parent_files(parent)})
    expected = changed(BASE)
    reference = MemorySource(expected)
    disk = opened(path)
    assert disk.info.has_parent
    assert disk.size == len(expected)
    assert_ready_bytes(disk, reference)
    assert_whole(disk, reference)
    assert_both_sides(disk, reference, (512, 4096), limit=70)
    assert_random_ranges(disk, reference, count=40)
    assert_map(disk, reference)
    assert_past_the_end(disk)
    assert_threads(opened(path), reference, reads=4)
    for extent in disk.extents():
        grain = extent.offset // 4096
        assert (extent.depth == 0) == (grain in CHANGED), extent
        # A flat parent has no holes, and the grains of the stream are twice as large.
        holes = {"flat": set(), "stream": {4}}.get(parent, {4, 30})
        assert (extent.kind is ExtentKind.HOLE) == (grain in holes), extent
    disk.read_at(0, disk.size)
    assert isinstance(disk, MappedImage)
    ready = disk.read_if_ready(0, 8192)
    assert ready is not None
    assert_same_bytes(ready, expected[:8192])
    disk.close()
    assert rules(path) == []


@pytest.mark.parametrize("child", ["cowd", "sesparse"])
def test_qemu_reads_the_same(child: str, tmp_path: Path) -> None:
    create_type = {"cowd": "vmfsSparse", "sesparse": "seSparse"}[child]
    files = {**child_files(child), **parent_files("hosted")}
    text = files["child.vmdk"]
    assert isinstance(text, str)
    files["child.vmdk"] = text.replace('"custom"', f'"{create_type}"')
    path = written(tmp_path, files)
    assert_qemu_agrees(path, changed(BASE))
    assert runs(our_map(opened(path))) == runs(qemu_map(path))


@pytest.mark.parametrize("child", ["sesparse", "hosted"])
def test_zeroes_of_a_child_hide_its_parent(child: str, tmp_path: Path) -> None:
    zero = (0, 1, 40, 60)
    grains = {number: data for number, data in GRAINS.items() if number not in zero}
    files = child_files(child)
    if child == "sesparse":
        files["child-sesparse"] = bytes(sesparse(grains, SECTORS, zero=zero[:2], unmapped=zero[2:]))
    else:
        embedded = descriptor_text(SECTORS).replace("ffffffff", f'{BASE_CID}\nparentFileNameHint="base.vmdk"')
        layout = Layout(grain=8, descriptor=embedded, version=2, zeroed=frozenset(zero))
        files["child.vmdk"] = bytes(build_grains(grains, SECTORS, layout))
    path = written(tmp_path, {**files, **parent_files("flat")})
    expected = changed(BASE, zero=zero)
    disk = opened(path)
    assert_whole(disk, MemorySource(expected))
    assert_map(disk, MemorySource(expected))
    if child == "sesparse":
        path.write_text(path.read_text().replace('"custom"', '"seSparse"'))
        written(tmp_path, parent_files("hosted"))
        assert_qemu_agrees(path, expected)


def test_a_zero_extent_of_a_child_hides_its_parent(tmp_path: Path) -> None:
    lines = ["RW 8 ZERO", f'RW {SECTORS - 8} SPARSE "child-s002"']
    hosted = build_grains({}, SECTORS - 8, Layout(grain=8, descriptor=""))
    text = descriptor(lines, parent_cid=BASE_CID, hint="base.vmdk")
    path = written(tmp_path, {"child.vmdk": text, "child-s002": bytes(hosted), **parent_files("flat")})
    assert_whole(opened(path), MemorySource(bytes(4096) + BASE[4096:]))


@pytest.mark.parametrize("sectors", [1, 8, 100, SECTORS - 1, SECTORS, SECTORS + 1, SECTORS + 1000])
def test_past_the_end_of_its_parent_a_child_has_zeroes(sectors: int, tmp_path: Path) -> None:
    parent = stamped(sectors, 5)
    text = descriptor([f'RW {sectors} FLAT "base-flat"'], cid=BASE_CID)
    path = written(tmp_path, {**child_files("cowd"), "base.vmdk": text, "base-flat": parent})
    expected = changed(parent[: SECTORS * 512].ljust(SECTORS * 512, b"\0"))
    disk = opened(path)
    assert_whole(disk, MemorySource(expected))
    assert_both_sides(disk, MemorySource(expected), (512,), limit=SECTORS)
    assert_map(disk, MemorySource(expected))


def test_what_esx_wrote_over_what_esx_wrote(corpus: Path, tmp_path: Path) -> None:
    """The descriptors and the parent are of the corpus; the delta between them, which it lacks, is packed here."""
    for name in ("vmfs_thick.vmdk", "vmfs_thick-flat.vmdk", "vmfs_thick-000001.vmdk"):
        shutil.copy(corpus / "vmdk-rs" / name, tmp_path)
    base = (tmp_path / "vmfs_thick-flat.vmdk").read_bytes()
    grains = {number: stamped(1, number) for number in (0, 1, 100, 2047, 2048, 4095)}
    written(tmp_path, {"vmfs_thick-000001-delta.vmdk": bytes(cowd(grains, 4096, seed=1))})
    expected = bytearray(base)
    for number, data in grains.items():
        expected[number * 512 : (number + 1) * 512] = data
    disk = opened(tmp_path / "vmfs_thick-000001.vmdk")
    assert isinstance(disk, VmdkImage)
    assert (disk.cid, disk.info.variant, disk.info.has_parent) == (0x8F67CA74, "vmfsSparse", True)
    assert isinstance(disk.parent, VmdkImage)
    assert disk.parent.cid == 0x0172E8A4
    assert_whole(disk, MemorySource(bytes(expected)))
    assert_qemu_agrees(tmp_path / "vmfs_thick-000001.vmdk", bytes(expected))


# ---- qemu ----


@pytest.mark.parametrize("subformats", [("monolithicSparse",) * 3, ("twoGbMaxExtentSparse",) * 3])
def test_chains_that_qemu_makes(subformats: tuple[str, ...], tmp_path: Path) -> None:
    size = 40 * 65536 + 512
    content = bytearray(size)
    chance = random.Random(6)
    for level, subformat in enumerate(subformats):
        name = f"disk{level}.vmdk"
        backing = ["-b", f"disk{level - 1}.vmdk", "-F", "vmdk"] if level else []
        run(
            "qemu-img", "create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", *backing, name, size, cwd=tmp_path
        )
        commands: list[str] = []
        for number in chance.sample(range(41), 9):
            offset = number * 65536 + 512 * chance.randrange(3) if number < 40 else number * 65536
            length = min(512 * chance.randrange(1, 120), size - offset)
            pattern = level * 64 + number + 1
            commands += ["-c", f"write -q -P {pattern} {offset} {length}"]
            content[offset : offset + length] = bytes([pattern]) * length
        run("qemu-io", "-f", "vmdk", *commands, name, cwd=tmp_path)
    path = tmp_path / "disk2.vmdk"
    reference = MemorySource(bytes(content))
    disk = opened(path)
    assert_whole(disk, reference)
    assert_both_sides(disk, reference, (65536,))
    assert_map(disk, reference)
    assert_qemu_agrees(path, bytes(content))
    found = our_map(disk)
    assert runs(found) == runs(qemu_map(path))
    assert {entry["depth"] for entry in found if entry["data"]} == {0, 1, 2}
    places = [(entry["depth"], entry["offset"]) for entry in found if "offset" in entry]
    assert places == [(entry["depth"], entry["offset"]) for entry in qemu_map(path) if "offset" in entry]
    disk.close()
    assert rules(path) == []


# ---- the right parent ----


@pytest.mark.parametrize("child", CHILDREN)
def test_a_parent_with_another_cid_is_refused(child: str, tmp_path: Path) -> None:
    path = written(tmp_path, {**child_files(child, parent_cid="12345678"), **parent_files("flat")})
    with pytest.raises(ParentUnavailable, match=r"child\.vmdk.*base\.vmdk.*600d600d, expected 12345678"):
        opened(path)
    assert "vmdk-parent" in rules(path)


def test_a_cid_is_a_number_however_it_is_written(tmp_path: Path) -> None:
    parent = descriptor([f'RW {SECTORS} FLAT "base-flat"'], cid="BAD")
    files = {**child_files("cowd", parent_cid="00000bad"), "base.vmdk": parent, "base-flat": BASE}
    assert_whole(opened(written(tmp_path, files)), MemorySource(changed(BASE)))


@pytest.mark.parametrize("cid", ["", "ffffffffff", "xyz"])
def test_a_parent_without_a_cid_is_refused(cid: str, tmp_path: Path) -> None:
    parent = descriptor([f'RW {SECTORS} FLAT "base-flat"'], cid=cid)
    path = written(tmp_path, {**child_files("cowd"), "base.vmdk": parent, "base-flat": BASE})
    with pytest.raises(ParentUnavailable, match="it has none, expected 600d600d"):
        opened(path)
    bare = bytes(build(BASE, Layout(grain=8, descriptor="")))
    with pytest.raises(ParentUnavailable, match="it has none, expected 600d600d"):
        opened(written(tmp_path, {**child_files("cowd"), "base.vmdk": bare}))


@pytest.mark.parametrize("data", [BASE, b"", b"conectix" + bytes(504), b"QFI\xfb" + bytes(508)])
def test_a_parent_that_is_no_vmdk_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"base\.vmdk"):
        opened(written(tmp_path, {**child_files("cowd"), "base.vmdk": data}))


class Related(Beside):
    """Files beside, and whatever is said to be the parent."""

    def __init__(self, files: dict[str, bytes], parent: Any) -> None:
        super().__init__(files)
        self.parent = parent
        self.asked: list[tuple[list[str], str | None]] = []

    def open_parent(self, file_names: Sequence[str], format_name: str | None, /) -> DiskImage:
        self.asked.append((list(file_names), format_name))
        if isinstance(self.parent, BaseException):
            raise self.parent
        parent: DiskImage = self.parent
        return parent


def child_in_memory(parent: Any, *, hint: str = "base.vmdk") -> tuple[Related, VmdkImage | None, ImageError | None]:
    files = {
        name: data.encode() if isinstance(data, str) else data for name, data in child_files("cowd", hint=hint).items()
    }
    related = Related(files, parent)
    try:
        return related, VmdkDriver().open(MemorySource(files["child.vmdk"], "child.vmdk"), related), None
    except ImageError as error:
        return related, None, error


def test_what_is_said_of_a_missing_parent_comes_out_as_it_is() -> None:
    original = ParentUnavailable("look elsewhere")
    related, _, error = child_in_memory(original)
    assert error is original
    assert related.asked == [(["base.vmdk"], "vmdk")]
    # The child's own extent does not stay open.
    assert [source.closed for source in related.opened] == [True]


class OtherDisk(MappedImage):
    """A disk of another format."""

    closed = False

    def lookup(self, offset: int, /) -> Any:
        raise AssertionError

    def close(self) -> None:
        self.closed = True


def test_a_parent_of_another_format_is_refused_and_closed() -> None:
    other = OtherDisk("other.vhd", AbsentParent.info, [])
    related, _, error = child_in_memory(other)
    assert isinstance(error, ParentUnavailable)
    assert "other.vhd is no VMDK" in str(error)
    assert other.closed
    assert all(source.closed for source in related.opened)


def test_without_its_parent_a_child_reads_as_zero_where_it_has_nothing(tmp_path: Path) -> None:
    expected = changed(bytes(len(BASE)))
    _, disk, _ = child_in_memory(AbsentParent())
    assert disk is not None
    assert_whole(disk, MemorySource(expected))
    path = written(tmp_path, child_files("split"))
    with pytest.raises(ParentUnavailable, match=r"child\.vmdk.*'base\.vmdk' is not in"):
        opened(path)
    assert_whole(opened(path, allow_missing=True), MemorySource(expected))


@pytest.mark.parametrize(
    ("hint", "names"),
    [
        ("base.vmdk", ["base.vmdk"]), ("../vm/base.vmdk", ["base.vmdk"]), ("/vmfs/volumes/ds/base.vmdk", ["base.vmdk"]),
        ("C:\\VMs\\base disk.vmdk", ["base disk.vmdk"]), ("\\\\host\\share\\b", ["b"]), ("C:base.vmdk", ["base.vmdk"]),
        ("a\\b/c", ["c"]), ("/etc/passwd", ["passwd"]), ("http://host/x?y", ["x?y"]), ("json:{}", ["json:{}"]),
        ("", []), (".", []), ("..", []), ("/", []), ("a/..", []), ("a/", []), ("C:", []), ("x\x1b[2J", []),
        ("x" * 255, ["x" * 255]), ("x" * 256, []), ("\u00e9" * 128, []), ("/" * 5000, []),
    ],
)  # fmt: skip
def test_only_a_bare_name_is_looked_for(hint: str, names: list[str]) -> None:
    related, disk, _ = child_in_memory(AbsentParent(), hint=hint)
    assert disk is not None
    assert related.asked == [(names, "vmdk")]


def test_the_parent_that_the_user_names_is_taken_whatever_the_hint_says(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    written(tmp_path / "elsewhere", parent_files("split"))
    path = written(tmp_path, child_files("sesparse", hint="/etc/.."))
    with pytest.raises(ParentUnavailable, match="--parent FILE"):
        opened(path)
    disk = opened(path, parents=[tmp_path / "elsewhere" / "base.vmdk"])
    assert_whole(disk, MemorySource(changed(BASE)))


def test_a_name_without_a_cid_is_a_parent_that_cannot_be_verified(tmp_path: Path) -> None:
    files = child_files("cowd")
    text = files["child.vmdk"]
    assert isinstance(text, str)
    files["child.vmdk"] = text.replace(f"parentCID={BASE_CID}\n", "")
    disk = opened(written(tmp_path, {**files, **parent_files("flat")}))
    assert [finding.rule for finding in disk.info.findings] == ["vmdk-parent-unverified"]
    assert_whole(disk, MemorySource(changed(BASE)))


def test_without_a_parent_cid_a_hint_means_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, child_files("cowd", parent_cid="ffffffff"))
    disk = opened(path)
    assert not disk.info.has_parent
    assert_whole(disk, MemorySource(changed(bytes(len(BASE)))))


def test_changed_block_tracking_is_of_no_concern(tmp_path: Path) -> None:
    files = child_files("cowd")
    text = files["child.vmdk"]
    assert isinstance(text, str)
    files["child.vmdk"] = text + '\n# Change Tracking File\nchangeTrackPath="/etc/passwd"\n'
    assert_whole(opened(written(tmp_path, {**files, **parent_files("flat")})), MemorySource(changed(BASE)))


# ---- chains ----


def empty_child(number: int, parent: int, sectors: int = 16) -> dict[str, str | bytes]:
    """Return a child that has sector `number` and takes the rest from disk `parent`."""
    text = descriptor(
        [f'RW {sectors} VMFSSPARSE "d{number}-delta"'], "vmfsSparse", cid=f"{number + 1:x}",
        parent_cid=f"{parent + 1:x}", hint=f"d{parent}.vmdk",
    )  # fmt: skip
    return {
        f"d{number}.vmdk": text,
        f"d{number}-delta": bytes(cowd({number % sectors: stamped(1, number)}, sectors)),
    }


def chain_of(folder: Path, length: int) -> Iterator[bytes]:
    """Write a chain of `length` disks; yield the bytes of each, from the base on."""
    content = bytearray(stamped(16, 99))
    text = descriptor(['RW 16 FLAT "d0-flat"'], cid="1")
    written(folder, {"d0.vmdk": text, "d0-flat": bytes(content)})
    yield bytes(content)
    for number in range(1, length):
        written(folder, empty_child(number, number - 1))
        at = number % 16
        content[at * 512 : at * 512 + 512] = stamped(1, number)
        yield bytes(content)


def test_a_chain_is_as_long_as_it_may_be(tmp_path: Path) -> None:
    contents = list(chain_of(tmp_path, MAX_CHAIN + 1))
    assert MAX_CHAIN == 16
    for number in (0, 1, 14, 15):
        assert_whole(opened(tmp_path / f"d{number}.vmdk"), MemorySource(contents[number]))
    with pytest.raises(CorruptImage, match="over 16 files long"):
        opened(tmp_path / "d16.vmdk")


def test_a_disk_is_not_its_own_parent(tmp_path: Path) -> None:
    path = written(tmp_path, empty_child(3, 3))
    with pytest.raises(CorruptImage, match=r"d3\.vmdk.*comes back to this file"):
        opened(path)


def test_two_disks_are_not_each_other_s_parents(tmp_path: Path) -> None:
    path = written(tmp_path, {**empty_child(1, 2), **empty_child(2, 1)})
    with pytest.raises(CorruptImage, match=r"d1\.vmdk.*comes back to this file"):
        opened(path)


def test_nothing_stays_open_of_a_chain_that_cannot_be_opened(tmp_path: Path) -> None:
    list(chain_of(tmp_path, 17))
    (tmp_path / "d1.vmdk").write_text((tmp_path / "d1.vmdk").read_text().replace("parentCID=1", "parentCID=7"))
    before = sorted(Path("/proc/self/fd").iterdir())
    for name in ("d15.vmdk", "d16.vmdk", "d1.vmdk"):
        with pytest.raises(ImageError):
            opened(tmp_path / name)
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_closing_a_child_closes_its_chain(tmp_path: Path) -> None:
    list(chain_of(tmp_path, 5))
    before = len(list(Path("/proc/self/fd").iterdir()))
    disk = opened(tmp_path / "d4.vmdk")
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 10
    disk.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# ---- checks ----


def test_checking_a_child_says_when_its_parent_is_missing_and_checks_the_rest(tmp_path: Path) -> None:
    built = cowd(ONE_SECTOR_GRAINS, SECTORS)
    built.set_entry(16, 2**31)
    path = written(tmp_path, {**child_files("cowd"), "child-delta": bytes(built)})
    path = tmp_path / "child.vmdk"
    found = [(finding.rule, "base.vmdk" in finding.message) for finding in findings(path)]
    assert found == [("vmdk-parent", True), ("vmdk-grain", False)]


def test_damage_of_the_parent_is_not_damage_of_the_child(tmp_path: Path) -> None:
    embedded = descriptor_text(SECTORS).replace("7d1c23ab", BASE_CID)
    parent = build(BASE, Layout(grain=8, descriptor=embedded)).set_entry(1, 2**31)
    path = written(tmp_path, {**child_files("cowd"), "base.vmdk": bytes(parent)})
    assert rules(path) == []
    assert rules(tmp_path / "base.vmdk") == ["vmdk-grain"]
    with pytest.raises(CorruptImage, match=r"base\.vmdk: grain 1 "):
        opened(path).read_at(4096, 1)


def test_an_image_that_must_stand_alone_says_that_it_needs_its_parent() -> None:
    data = child_files("hosted")["child.vmdk"]
    assert isinstance(data, bytes)
    with pytest.raises(ParentUnavailable, match=r"needs its parent, 'base\.vmdk'"):
        VmdkDriver().open(MemorySource(data, "child.vmdk"), NoRelatedFiles())
