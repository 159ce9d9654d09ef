"""VMIE-FMT: images that qemu-img made, and what it cannot make built from the specifications."""

import gzip
import os
import random
import struct
import subprocess
from pathlib import Path
from uuid import UUID

import pytest

from tests.formats.test_vhdx_log import dirty_disk, entry
from tests.fuse.mounting import diskfs
from tests.preflight.checking import MIB, appliance, disk, qemu_image, result_of, run, status_of
from tests.samples import vhd_builder, vhdx_builder

STREAM = {"subformat": "streamOptimized"}
REFUSED = "Error Code: InvalidParameter, Error Message: Message: Parameter disk-image-size=0 has an invalid format"


def stream_optimized(path: Path, size: int = 4 * MIB) -> Path:
    raw = path.with_suffix(".raw")
    raw.write_bytes(os.urandom(65536).ljust(size, b"\0"))
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, path)
    raw.unlink()
    return path


@pytest.mark.parametrize(
    ("image_format", "image", "instance", "snapshot"),
    [
        ("raw", "pass", "pass", "pass"), ("vmdk", "pass", "pass", "pass"), ("vpc", "pass", "pass", "pass"),
        ("vhdx", "pass", "fail", "pass"), ("qcow2", "fail", "fail", "fail"), ("vdi", "fail", "fail", "fail"),
        ("qed", "fail", "fail", "fail"), ("parallels", "fail", "fail", "fail"),
    ],
)  # fmt: skip
def test_formats_of_each_operation(tmp_path: Path, image_format: str, image: str, instance: str, snapshot: str) -> None:
    path = qemu_image(tmp_path / "disk.vmdk", image_format)
    assert status_of(path, "VMIE-FMT-01") == image
    assert status_of(path, "VMIE-FMT-03", "import-instance") == instance
    assert status_of(path, "VMIE-FMT-02", "import-snapshot") == snapshot
    assert status_of(path, "VMIE-SNAP-05", "import-snapshot") == snapshot


def test_the_service_is_quoted_and_the_remedy_is_a_command(tmp_path: Path) -> None:
    found = result_of(qemu_image(tmp_path / "a disk.qcow2", "qcow2"), "VMIE-FMT-01")
    assert found.rule.message == REFUSED
    assert found.found == "disk0 (a disk.qcow2) is qcow2"
    assert found.remedy == f"diskfs convert '{tmp_path}/a disk.qcow2' disk.vmdk -O vmdk"


@pytest.mark.parametrize("program", ["gzip", "bzip2", "xz"])
def test_a_compressed_disk_is_refused(tmp_path: Path, program: str) -> None:
    path = disk(tmp_path / "disk.raw", "label: dos\n,,L\n", MIB * 2)
    packed = subprocess.run([program, "-c", path], capture_output=True, check=True).stdout
    (tmp_path / "packed.raw").write_bytes(packed)
    found = result_of(tmp_path / "packed.raw", "VMIE-FMT-01")
    assert found.status.value == "fail"
    assert f"{program}-compressed" in found.found


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").touch()
    assert "empty" in result_of(tmp_path / "disk.raw", "VMIE-FMT-01").found


def iso_descriptor() -> bytes:
    """A primary volume descriptor, ECMA-119 8.4: type 1, CD001, version 1."""
    return b"\x01CD001\x01".ljust(2048, b"\0")


def test_an_optical_disc_is_refused_and_its_remains_are_not(tmp_path: Path) -> None:
    path = tmp_path / "disc.iso"
    path.write_bytes(bytes(32768) + iso_descriptor() + bytes(MIB))
    assert "ISO 9660" in result_of(path, "VMIE-FMT-01").found
    hybrid = disk(
        tmp_path / "hybrid.iso", "label: dos\nstart=64,size=4096,type=0\n".replace("type=0", "type=83"), 4 * MIB
    )
    for one in (hybrid, disk(tmp_path / "reused.raw", "label: gpt\nstart=2048,type=L\n", 4 * MIB)):
        with one.open("r+b") as file:
            file.seek(32768)
            file.write(iso_descriptor())
    assert status_of(hybrid, "VMIE-FMT-01") == "fail"
    assert status_of(tmp_path / "reused.raw", "VMIE-FMT-01") == "pass"


def test_two_signatures_are_undecided(tmp_path: Path) -> None:
    path = disk(tmp_path / "disk.raw", "label: dos\n,,L\n", 4 * MIB)
    with path.open("r+b") as file:
        file.write(b"vhdxfile")
    found = result_of(path, "VMIE-FMT-01")
    assert found.status.value == "unknown"
    assert "--format" in found.found


def test_an_ova_is_for_import_image_alone(tmp_path: Path) -> None:
    path = appliance(
        tmp_path / "vm.ova", [stream_optimized(tmp_path / "one.vmdk"), stream_optimized(tmp_path / "two.vmdk")]
    )
    assert status_of(path, "VMIE-FMT-01") == "pass"
    assert status_of(path, "VMIE-FMT-02", "import-snapshot") == "fail"
    assert status_of(path, "VMIE-FMT-03", "import-instance") == "fail"
    assert result_of(path, "VMIE-FMT-07").found == "2 disks: one.vmdk, two.vmdk"
    assert status_of(path, "VMIE-FMT-12", "import-instance") == "fail"
    assert status_of(path, "VMIE-FMT-13", "import-instance") == "fail"
    assert status_of(path, "VMIE-FMT-13", "import-image") == "pass"


def test_a_disk_of_another_format_spoils_the_ova(tmp_path: Path) -> None:
    path = appliance(
        tmp_path / "vm.ova", [stream_optimized(tmp_path / "one.vmdk"), qemu_image(tmp_path / "two.vmdk", "qcow2")]
    )
    found = result_of(path, "VMIE-FMT-01")
    assert found.status.value == "fail"
    assert found.found == "disk1 (two.vmdk) is qcow2"


def test_an_ovf_is_to_be_packed(tmp_path: Path) -> None:
    one = stream_optimized(tmp_path / "one.vmdk")
    found = result_of(appliance(tmp_path / "vm.ovf", [one]), "VMIE-FMT-14")
    assert (found.status.value, found.severity.value) == ("fail", "info")
    assert found.remedy == f"diskfs convert {tmp_path}/vm.ovf vm.ova -O ova"
    assert status_of(one, "VMIE-FMT-14") == "pass"
    assert status_of(one, "VMIE-FMT-07") == "not-applicable"


@pytest.mark.parametrize(
    "subformat", ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"]
)
def test_a_vmdk_that_is_not_stream_optimized_fails(tmp_path: Path, subformat: str) -> None:
    found = result_of(qemu_image(tmp_path / "disk.vmdk", "vmdk", subformat=subformat), "VMIE-FMT-04")
    assert found.status.value == "fail"
    assert f"createType={subformat!r}" in found.found
    assert "--variant streamOptimized" in found.remedy
    assert found.rule.message == "ClientError: Disk validation failed [Unsupported VMDK File Format]"


def test_a_stream_optimized_vmdk_passes_and_its_flags_are_evidence(tmp_path: Path) -> None:
    path = stream_optimized(tmp_path / "disk.vmdk")
    found = result_of(path, "VMIE-FMT-04")
    assert found.status.value == "pass"
    assert "flags 0x30003 at offset 8, compressAlgorithm 1 at offset 77" in found.found


@pytest.mark.parametrize(("offset", "value"), [(8, 1), (8, 0x10001), (8, 0x20001), (77, 0)])
def test_each_mark_of_stream_optimization_is_needed(tmp_path: Path, offset: int, value: int) -> None:
    path = stream_optimized(tmp_path / "disk.vmdk")
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value.to_bytes(4 if offset == 8 else 2, "little"))
    assert status_of(path, "VMIE-FMT-04") == "fail"


def test_the_descriptor_must_say_so_too(tmp_path: Path) -> None:
    path = stream_optimized(tmp_path / "disk.vmdk")
    path.write_bytes(path.read_bytes().replace(b'"streamOptimized"', b'"monolithicSpars"'))
    assert "monolithicSpars" in result_of(path, "VMIE-FMT-04").found


@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_a_vhd_of_qemu_passes(tmp_path: Path, subformat: str) -> None:
    assert status_of(qemu_image(tmp_path / "disk.vhd", "vpc", subformat=subformat), "VMIE-FMT-05") == "pass"


def footer_of(data: bytearray, at: int, **fields: int) -> bytes:
    """Change fields of a VHD footer; the checksum is the complement of the sum (specification, "Checksum")."""
    footer = bytearray(data[at : at + 512])
    places = {"current_size": (48, ">Q"), "disk_type": (60, ">I"), "data_offset": (16, ">Q")}
    for name, value in fields.items():
        struct.pack_into(places[name][1], footer, places[name][0], value)
    footer[64:68] = bytes(4)
    struct.pack_into(">I", footer, 64, ~sum(footer) & 0xFFFFFFFF)
    return bytes(footer)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        ("copy", "its copy at offset 0 differs from byte 300 on"), ("checksum", "checksum 0x"),
        ("differencing", "disk type 4"), ("type", "disk type 6"), ("header", "no dynamic header"),
        ("cut", "there is no footer at the end"),
    ],
)  # fmt: skip
def test_a_vhd_written_wrongly_fails(tmp_path: Path, damage: str, text: str) -> None:
    path = qemu_image(tmp_path / "disk.vhd", "vpc", subformat="dynamic")
    data = bytearray(path.read_bytes())
    end = len(data) - 512
    if damage == "copy":
        data[300] ^= 1
    elif damage == "checksum":
        data[end + 300] ^= 1
    elif damage in {"differencing", "type"}:
        data[end:] = data[:512] = footer_of(data, end, disk_type=4 if damage == "differencing" else 6)
    elif damage == "header":
        data[512] ^= 0xFF
    else:
        del data[end:]
    path.write_bytes(data)
    found = result_of(path, "VMIE-FMT-05")
    assert found.status.value == "fail"
    assert text in found.found
    assert found.rule.message == "ClientError: Footers not identical"


@pytest.mark.parametrize("change", [-512, 512])
def test_a_fixed_vhd_has_the_size_that_it_says(tmp_path: Path, change: int) -> None:
    path = qemu_image(tmp_path / "disk.vhd", "vpc", subformat="fixed")
    data = path.read_bytes()
    footer = data[-512:]
    path.write_bytes(data[:-1024] + footer if change < 0 else data[:-512] + bytes(change) + footer)
    found = result_of(path, "VMIE-FMT-05")
    assert found.status.value == "fail"
    assert f"it has {len(data) + change}" in found.found


def test_a_differencing_vhd_fails_whether_its_parent_is_there_or_not(tmp_path: Path) -> None:
    files, _ = vhd_builder.chain(2, 4 * MIB, MIB)
    vhd_builder.write_chain(tmp_path, files)
    child, parent = (tmp_path / name for name, _ in files)
    assert "disk type 4" in result_of(child, "VMIE-FMT-05").found
    assert status_of(parent, "VMIE-FMT-05") == "pass"
    parent.unlink()
    assert "disk type 4" in result_of(child, "VMIE-FMT-05").found


@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_a_vhdx_of_qemu_passes(tmp_path: Path, subformat: str) -> None:
    assert status_of(qemu_image(tmp_path / "disk.vhdx", "vhdx", subformat=subformat), "VMIE-FMT-06") == "pass"
    assert status_of(qemu_image(tmp_path / "disk.vmdk", "vmdk"), "VMIE-FMT-06") == "not-applicable"


def test_a_vhdx_with_a_parent_fails(tmp_path: Path) -> None:
    locator = vhdx_builder.locator_for(UUID(int=5), "parent.vhdx")
    builder = vhdx_builder.VhdxBuilder(4 * MIB, parameter_bits=2, locator=locator)
    (tmp_path / "disk.vhdx").write_bytes(builder.build())
    found = result_of(tmp_path / "disk.vhdx", "VMIE-FMT-06")
    assert (found.status.value, found.severity.value) == ("fail", "error")
    assert "HasParent" in found.found


def test_a_vhdx_with_a_log_to_replay_is_warned_of(tmp_path: Path) -> None:
    builder = dirty_disk()
    builder.write_log((0, entry(builder, {0: 1}, number=1, tail=0)))
    (tmp_path / "disk.vhdx").write_bytes(builder.build())
    found = result_of(tmp_path / "disk.vhdx", "VMIE-FMT-06")
    assert (found.status.value, found.severity.value) == ("fail", "warning")


def test_a_disk_in_chunks_fails(tmp_path: Path) -> None:
    one = stream_optimized(tmp_path / "one.vmdk")
    whole = appliance(tmp_path / "whole.ova", [one])
    assert status_of(whole, "VMIE-FMT-08") == "pass"
    found = result_of(appliance(tmp_path / "vm.ova", [one], chunk_size=1 << 30), "VMIE-FMT-08")
    assert found.status.value == "fail"
    assert "chunkSize 1073741824" in found.found
    assert found.rule.message is not None
    assert "chunked disk files" in found.rule.message


def test_a_vmdk_in_several_extents_fails(tmp_path: Path) -> None:
    path = qemu_image(tmp_path / "disk.vmdk", "vmdk", "5G", subformat="twoGbMaxExtentSparse")
    assert "lists 3 extents" in result_of(path, "VMIE-FMT-08").found
    single = qemu_image(tmp_path / "one.vmdk", "vmdk", "1G", subformat="monolithicSparse")
    assert status_of(single, "VMIE-FMT-08") == "pass"


def test_a_delta_fails(tmp_path: Path) -> None:
    base = qemu_image(tmp_path / "base.vmdk", "vmdk")
    assert status_of(base, "VMIE-FMT-09") == "pass"
    delta = tmp_path / "delta.vmdk"
    run("qemu-img", "create", "-q", "-f", "vmdk", "-b", base, "-F", "vmdk", delta)
    assert "parentCID=" in result_of(delta, "VMIE-FMT-09").found
    base.unlink()
    assert status_of(delta, "VMIE-FMT-09") == "fail"


DESCRIPTOR = """# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="{create_type}"
RW 8192 {kind} "disk-data.vmdk"
"""


@pytest.mark.parametrize(
    ("create_type", "kind", "rule"),
    [
        ("seSparse", "SESPARSE", "VMIE-FMT-09"), ("vmfsRawDeviceMap", "VMFSRDM", "VMIE-FMT-10"),
        ("vmfsPassthroughRawDeviceMap", "VMFSRDM", "VMIE-FMT-10"), ("fullDevice", "FLAT", "VMIE-FMT-10"),
        ("partitionedDevice", "FLAT", "VMIE-FMT-10"), ("vmfs", "VMFS", ""),
    ],
)  # fmt: skip
def test_what_is_no_plain_vmdk_fails_by_its_descriptor(tmp_path: Path, create_type: str, kind: str, rule: str) -> None:
    (tmp_path / "disk.vmdk").write_text(DESCRIPTOR.format(create_type=create_type, kind=kind))
    for rule_id in ("VMIE-FMT-09", "VMIE-FMT-10"):
        assert status_of(tmp_path / "disk.vmdk", rule_id) == ("fail" if rule_id == rule else "pass")


def closed_stream(path: Path) -> Path:
    """A streamOptimized VMDK with footer and end-of-stream marker, which qemu-img leaves out."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(os.urandom(65536).ljust(4 * MIB, b"\0"))
    diskfs("convert", raw, path, "-O", "vmdk")
    return path


def test_damage_inside_a_vmdk_is_found_with_deep_alone(tmp_path: Path) -> None:
    path = closed_stream(tmp_path / "disk.vmdk")
    assert status_of(path, "VMIE-FMT-11") == "not-checked"
    assert status_of(path, "VMIE-FMT-11", deep=True) == "pass"
    data = bytearray(path.read_bytes())
    start = struct.unpack_from("<Q", data, 64)[0] * 512  # overHead: the first grain's marker
    data[start + 12 + 20 : start + 12 + 60] = bytes(40)
    path.write_bytes(data)
    assert status_of(path, "VMIE-FMT-11") == "not-checked"
    found = result_of(path, "VMIE-FMT-11", deep=True)
    assert found.status.value == "fail"
    assert found.rule.message == "ClientError: Uncompressed data has an invalid length"


@pytest.mark.parametrize("cut", [512, 1024, 4096])
def test_a_vmdk_cut_short_fails_at_once(tmp_path: Path, cut: int) -> None:
    path = closed_stream(tmp_path / "disk.vmdk")
    path.write_bytes(path.read_bytes()[:-cut])
    found = result_of(path, "VMIE-FMT-11")
    assert (found.status.value, found.severity.value) == ("fail", "error")


def test_a_stream_that_qemu_leaves_open_is_warned_of(tmp_path: Path) -> None:
    found = result_of(stream_optimized(tmp_path / "disk.vmdk"), "VMIE-FMT-11")
    assert (found.status.value, found.severity.value) == ("fail", "warning")


def test_compression_zero_is_refused_for_an_instance(tmp_path: Path) -> None:
    assert status_of(stream_optimized(tmp_path / "good.vmdk"), "VMIE-FMT-12", "import-instance") == "pass"
    found = result_of(qemu_image(tmp_path / "bad.vmdk", "vmdk"), "VMIE-FMT-12", "import-instance")
    assert found.found == "disk0 (bad.vmdk): compressAlgorithm at offset 77 is 0"
    assert found.rule.message == "ERROR: File uses unsupported compression algorithm 0"


def test_a_gzip_compressed_member_is_read_through_and_left_open(tmp_path: Path) -> None:
    one = stream_optimized(tmp_path / "one.vmdk")
    one.write_bytes(gzip.compress(one.read_bytes(), mtime=0))
    path = appliance(tmp_path / "vm.ova", [one])
    assert status_of(path, "VMIE-FMT-04") == "pass"
    assert status_of(path, "VMIE-FMT-01") == "unknown"


def test_a_disk_that_is_not_in_the_appliance_is_refused_and_the_others_are_judged(tmp_path: Path) -> None:
    one, two = stream_optimized(tmp_path / "one.vmdk"), qemu_image(tmp_path / "two.vmdk", "vmdk")
    path = appliance(tmp_path / "vm.ova", [one, two])
    run("tar", "--delete", "-f", path, "one.vmdk")
    found = result_of(path, "VMIE-FMT-01")
    assert found.status.value == "fail"
    assert found.found.startswith("disk0 (one.vmdk): ")
    assert "disk1 (two.vmdk)" in result_of(path, "VMIE-FMT-04").found
    assert status_of(path, "VMIE-SIZE-01") == "unknown"


def test_a_tar_that_is_no_appliance_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    run("tar", "--format=ustar", "-C", tmp_path, "-cf", tmp_path / "vm.ova", "a.txt")
    found = result_of(tmp_path / "vm.ova", "VMIE-FMT-01")
    assert found.status.value == "fail"
    assert "no appliance" in found.found


def test_damaged_tables_are_refused(tmp_path: Path) -> None:
    vhd = qemu_image(tmp_path / "disk.vhd", "vpc", subformat="dynamic")
    data = bytearray(vhd.read_bytes())
    data[512 + 32 : 512 + 36] = bytes(4)  # block_size of the dynamic header
    checksum = ~sum(data[512 : 512 + 36] + data[512 + 40 : 1536]) & 0xFFFFFFFF
    struct.pack_into(">I", data, 512 + 36, checksum)
    vhd.write_bytes(data)
    assert "block size" in result_of(vhd, "VMIE-FMT-05").found
    vhdx = qemu_image(tmp_path / "disk.vhdx", "vhdx")
    data = bytearray(vhdx.read_bytes())
    data[0x30000:0x50000] = bytes(0x20000)  # both region tables
    vhdx.write_bytes(data)
    assert status_of(vhdx, "VMIE-FMT-06") == "fail"


def test_a_header_cut_short_leaves_the_size_unknown(tmp_path: Path) -> None:
    (tmp_path / "disk.vmdk").write_bytes(b"KDMV" + bytes(100))
    assert status_of(tmp_path / "disk.vmdk", "VMIE-SIZE-01") == "unknown"
    assert status_of(tmp_path / "disk.vmdk", "VMIE-FMT-04") == "unknown"
    assert status_of(tmp_path / "disk.vmdk", "VMIE-FMT-11") == "fail"


def test_a_stream_of_qemu_that_is_cut_fails_at_once(tmp_path: Path) -> None:
    """Its grain tables are in front, so no footer is missing; a cut in the padding of the last grain loses nothing."""
    raw = tmp_path / "disk.raw"
    raw.write_bytes(random.Random(7).randbytes(4 * MIB))
    whole = tmp_path / "whole.vmdk"
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, whole)
    content = whole.read_bytes()
    assert not result_of(whole, "VMIE-FMT-11").refuses
    marker = (64 << 10) + 1000  # more than a grain of random bytes has behind it
    for size, is_refused in ((len(content) - 1, False), (len(content) - marker, True), (1 << 20, True)):
        cut = tmp_path / f"cut{size}.vmdk"
        cut.write_bytes(content[:size])
        found = result_of(cut, "VMIE-FMT-11")
        assert found.refuses is is_refused, found.found
        assert ("needs" in found.found and "is incomplete" in found.found) is is_refused
