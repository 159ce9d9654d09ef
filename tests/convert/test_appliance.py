"""What is written as an appliance: tar, descriptor, manifest and disks, looked at by tar, sha256sum, qemu-img, an XML
parser, and by what the specification asks.
"""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from diskfs_formats.errors import UnsupportedFeature
from diskfs_formats.ovf import OvfFile, parse_descriptor
from diskfs_formats.ovf_writing import WrittenDisk, corrected_descriptor, made_descriptor
from diskfs_formats.tar_writing import archive_end, tar_header
from tests.convert.commands import MIB, diskfs, make_raw, tar_members
from tests.fuse.mounting import environment, run
from tests.helpers import assert_same_bytes, corpus_rows

OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"
URI = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
APPLIANCES = sorted(
    {row.path for row in corpus_rows() if row.path.endswith((".ova", ".ovf")) and not row.hostile and not row.is_member}
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path / "disk.raw")


def unpack(ova: Path, folder: Path) -> list[str]:
    """Unpack by tar, and check the manifest by sha256sum: every file but itself is listed, and nothing else."""
    folder.mkdir()
    run("tar", "xf", ova, "-C", folder)
    names = [name for name, _ in tar_members(ova)]
    lines = (folder / names[1]).read_text().splitlines()
    found = [re.fullmatch(r"SHA256\((.+)\)= ([0-9a-f]{64})", line) for line in lines]
    assert all(found)
    listed = {match[1]: match[2] for match in found if match}
    assert list(listed) == [names[0], *names[2:]]
    sums = "".join(f"{digest}  {name}\n" for name, digest in listed.items())
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict"], cwd=folder, input=sums, text=True, check=True)
    return names


def test_a_disk_becomes_an_appliance_that_other_programs_read(raw: Path, tmp_path: Path) -> None:
    ova = tmp_path / "My machine.ova"
    diskfs("convert", raw, ova, "--verify")
    names = unpack(ova, tmp_path / "x")
    assert names == ["My-machine.ovf", "My-machine.mf", "My-machine-disk1.vmdk"]
    assert run("file", "-b", ova).startswith("POSIX tar archive")
    assert ova.stat().st_size % 10240 == 0
    disk = tmp_path / "x" / names[2]
    run("qemu-img", "check", "-q", disk)
    run("qemu-img", "compare", "-q", "-f", "vmdk", "-F", "raw", disk, raw)
    root = ET.fromstring((tmp_path / "x" / names[0]).read_text())
    assert root.tag == f"{OVF}Envelope"
    file = root.find(f"{OVF}References/{OVF}File")
    described = root.find(f"{OVF}DiskSection/{OVF}Disk")
    assert file is not None
    assert described is not None
    assert file.attrib == {
        f"{OVF}id": "file1", f"{OVF}href": names[2], f"{OVF}size": str(disk.stat().st_size),
    }  # fmt: skip
    populated = int(described.attrib[f"{OVF}populatedSize"])
    assert 0 < populated < MIB
    assert described.attrib == {
        f"{OVF}diskId": "vmdisk1", f"{OVF}fileRef": "file1", f"{OVF}format": URI,
        f"{OVF}capacity": str(20 * MIB + 2560), f"{OVF}capacityAllocationUnits": "byte",
        f"{OVF}populatedSize": str(populated),
    }  # fmt: skip


def test_the_same_appliance_comes_out_of_a_pipe(raw: Path, tmp_path: Path) -> None:
    diskfs("convert", raw, tmp_path / "disk.ova", "--reproducible")
    command = [sys.executable, "-m", "diskfs", "convert", str(raw), "-", "-O", "ova", "--reproducible"]
    piped = subprocess.run(command, env={**environment(), "TMPDIR": str(tmp_path)}, capture_output=True, check=True)
    assert_same_bytes(piped.stdout, (tmp_path / "disk.ova").read_bytes())
    assert not list(tmp_path.glob("diskfs-*"))


@pytest.mark.parametrize("path", APPLIANCES)
def test_every_appliance_is_kept_with_all_that_its_descriptor_says(path: str, corpus: Path, tmp_path: Path) -> None:
    described = subprocess.run(
        [sys.executable, "-m", "diskfs", "info", "--json", str(corpus / path)],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    disks = json.loads(described.stdout)["disks"] if described.stdout else []
    ova = tmp_path / "out.ova"
    if not disks or described.returncode:
        diskfs("convert", corpus / path, ova, code=1)
        assert not list(tmp_path.iterdir())
        return
    diskfs("convert", corpus / path, ova, "--verify")
    names = unpack(ova, tmp_path / "x")
    assert names[:2] == ["out.ovf", "out.mf"]
    after = parse_descriptor((tmp_path / "x/out.ovf").read_bytes(), "out.ovf")
    for number, disk in enumerate(after.disk_order()):
        file = after.file_of(disk)
        assert file is not None
        assert file.size == (tmp_path / "x" / file.href).stat().st_size
        assert disk.capacity == -(-disks[number]["virtual_size"] // 512) * 512
        assert (disk.format_uri, disk.parent_ref, file.compression, file.chunk_size) == (URI, "", "", None)
        run("qemu-img", "check", "-q", "-f", "vmdk", tmp_path / "x" / file.href)
        diskfs("compare", "--quiet", corpus / path, ova, "--disk-a", number, "--disk-b", number)
    # Files follow in the order of the References section.
    hrefs = [file.href for file in after.files]
    assert [name for name in names[2:] if name in hrefs] == [href for href in hrefs if href in names]


def test_one_disk_of_an_appliance_gets_a_descriptor_of_its_own(corpus: Path, tmp_path: Path) -> None:
    diskfs("convert", corpus / "appliances/two-disks.ova", tmp_path / "one.ova", "--disk", 1)
    assert [name for name, _ in tar_members(tmp_path / "one.ova")] == ["one.ovf", "one.mf", "one-disk1.vmdk"]
    diskfs("compare", corpus / "appliances/two-disks.ova", tmp_path / "one.ova", "--disk-a", 1)


@pytest.mark.parametrize("size", [0, 1, 512, 8**11 - 1, 8**11, 8**11 + 1, 1 << 43, (1 << 63) - 1])
def test_sizes_on_both_sides_of_8_gib_are_what_tar_reads(size: int, tmp_path: Path) -> None:
    header = tar_header("disk.vmdk", size, 1_700_000_000)
    assert len(header) == 512
    # tar lists the member before it finds that the file ends too soon.
    listed = subprocess.run(["tar", "tvf", "-"], input=header, capture_output=True, check=False).stdout.decode()
    assert listed.split()[2:3] == [str(size)]
    assert (header[124] == 0x80) == (size >= 8 << 30)


def test_a_name_that_no_reader_takes_is_refused() -> None:
    assert tar_header("x" * 100, 1, 0)[:100] == b"x" * 100
    for name in ("x" * 101, "", "é" * 51):
        with pytest.raises(UnsupportedFeature):
            tar_header(name, 1, 0)


@pytest.mark.parametrize("size", [0, 512, 9216, 9728, 10240])
def test_an_archive_ends_with_two_empty_blocks_and_a_full_record(size: int) -> None:
    end = archive_end(size)
    assert (size + len(end)) % 10240 == 0
    assert 1024 <= len(end) < 1024 + 10240
    assert not any(end)


@pytest.mark.parametrize("count", [1, 7, 8, 15, 16, 31])
def test_disks_are_on_controllers_in_order_and_never_at_address_7(count: int) -> None:
    disks = [WrittenDisk(f"d{number}.vmdk", 1000 + number, 512, 0) for number in range(count)]
    root = ET.fromstring(made_descriptor(disks, 'a "name" <&>').decode())
    items = root.findall(f".//{OVF}Item")
    ids = [item.findtext(f"{RASD}InstanceID") for item in items]
    assert len(set(ids)) == len(ids)
    places = []
    for item in items:
        children = [child.tag for child in item]
        assert children == sorted(children), "the schema has them in alphabetical order"
        if item.findtext(f"{RASD}ResourceType") == "17":
            address = item.findtext(f"{RASD}AddressOnParent")
            assert address != "7"
            places.append((item.findtext(f"{RASD}Parent"), address))
    assert len(set(places)) == count
    parsed = parse_descriptor(made_descriptor(disks, "x"), "x.ovf")
    assert [disk.disk_id for disk in parsed.disk_order()] == [f"vmdisk{number + 1}" for number in range(count)]


DESCRIPTOR = """<?xml version='1.0' encoding='{encoding}'?>
<!-- é kept -->
<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:v="http://example.org/vendor">
 <ovf:References><ovf:File ovf:id = "f&quot;1"
    ovf:href='a.vmdk.gz' ovf:compression="gzip" v:kept="&lt;yes&gt;" />
  <ovf:File ovf:id="iso" ovf:href="a.iso"></ovf:File>
 </ovf:References>
 <ovf:DiskSection><ovf:Info>é</ovf:Info>
  <ovf:Disk ovf:diskId="d" ovf:fileRef="f&quot;1" ovf:capacity="${{size}}" ovf:parentRef="p"></ovf:Disk>
 </ovf:DiskSection>
 <v:File id="f&quot;1" href="not a file of the References"/>
</ovf:Envelope>
"""


_WITH_FURTHER_FILES = """\
<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References>
    <File ovf:id="f1" ovf:href="disk.vmdk"/>
    <File ovf:id="f2" ovf:href="out.mf"/>
    <File ovf:id="f3" ovf:href="OUT-2.ovf"/>
    <File ovf:id="f4" ovf:href="nvram.bin"/>
    <File ovf:id="f5" ovf:href="nvram.bin"/>
  </References>
  <DiskSection><Info>Disks</Info>
    <Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="20974080"
      ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
  </DiskSection>
  <VirtualSystem ovf:id="vm"><Info>A machine</Info></VirtualSystem>
</Envelope>
"""


def test_further_files_never_make_two_members_of_one_name(raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    diskfs("convert", raw, folder / "disk.vmdk")
    (folder / "machine.ovf").write_text(_WITH_FURTHER_FILES)
    for name in ("out.mf", "OUT-2.ovf", "nvram.bin"):
        (folder / name).write_text(name)
    run(
        "tar",
        "cf",
        tmp_path / "source.ova",
        "-C",
        folder,
        "machine.ovf",
        "disk.vmdk",
        "out.mf",
        "OUT-2.ovf",
        "nvram.bin",
    )
    diskfs("convert", tmp_path / "source.ova", tmp_path / "out.ova")
    names = [name for name, _ in tar_members(tmp_path / "out.ova")]
    assert names == ["out-2-2.ovf", "out-2-2.mf", "disk.vmdk", "out.mf", "OUT-2.ovf", "nvram.bin"]
    diskfs("verify", tmp_path / "out.ova")
    diskfs("compare", raw, tmp_path / "out.ova")


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16", "ISO-8859-1"])
def test_a_descriptor_is_corrected_tag_by_tag_and_the_rest_is_kept(encoding: str) -> None:
    text = DESCRIPTOR.format(encoding=encoding)
    file = OvfFile('f"1', "a.vmdk.gz", None, "gzip")
    corrected = corrected_descriptor(
        text.encode(encoding), {file: WrittenDisk("a&b.vmdk", 123, 1024, 512)}, "a.ovf"
    ).decode()
    expected = (
        text.replace("ovf:href='a.vmdk.gz' ovf:compression=\"gzip\"", 'ovf:href="a&amp;b.vmdk"')
        .replace('v:kept="&lt;yes&gt;" />', 'v:kept="&lt;yes&gt;" ovf:size="123"/>')
        .replace(
            'ovf:capacity="${size}" ovf:parentRef="p">',
            f'ovf:capacity="1024" ovf:capacityAllocationUnits="byte" ovf:format="{URI}" ovf:populatedSize="512">',
        )
    )
    assert corrected.partition("\n")[2] == expected.partition("\n")[2]
    assert "UTF-8" in corrected.partition("\n")[0]


def test_the_digests_are_of_what_is_in_the_archive(raw: Path, tmp_path: Path) -> None:
    diskfs("convert", raw, tmp_path / "a.ova")
    unpack(tmp_path / "a.ova", tmp_path / "x")
    text = (tmp_path / "x/a.mf").read_text()
    assert hashlib.sha256((tmp_path / "x/a.ovf").read_bytes()).hexdigest() in text
