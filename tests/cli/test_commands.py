"""What scripts rely on: exit codes, one line of error, JSON by its schema, and a quick start."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from tests.fuse.mounting import ROOT, diskfs, environment, run
from tests.helpers import corpus_rows

MIB = 1 << 20
READ_HERE = [row.path for row in corpus_rows() if not row.hostile and not row.is_member and row.has_data
             and (row.format.startswith("vmdk-sparse") or row.path.endswith(".raw"))]  # fmt: skip


def schema(name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((ROOT / f"docs/schemas/{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def qemu_map(path: Path, image_format: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(run("qemu-img", "map", "-f", image_format, "--output=json", path))
    return found


@pytest.mark.parametrize("path", READ_HERE)
def test_info_and_map_follow_their_schemas(path: str, corpus: Path) -> None:
    jsonschema.validate(json.loads(diskfs("info", "--json", corpus / path).stdout), schema("info"))
    jsonschema.validate(json.loads(diskfs("map", "--json", corpus / path).stdout), schema("map"))


@pytest.mark.parametrize("name", ["two-disks.ova", "mixed.ova"])
def test_info_of_an_appliance_follows_its_schema_even_where_a_disk_is_not_read(name: str, corpus: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "diskfs", "info", "--json", corpus / "appliances" / name],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    jsonschema.validate(json.loads(result.stdout), schema("info"))


@pytest.mark.parametrize("path", [path for path in READ_HERE if path.endswith(".vmdk")])
def test_map_of_a_vmdk_equals_that_of_qemu_img(path: str, corpus: Path) -> None:
    if path.endswith("-s001.vmdk"):
        pytest.skip("qemu-img opens no extent of a split disk alone")
    ours = json.loads(diskfs("map", "--json", corpus / path).stdout)
    theirs = qemu_map(corpus / path, "vmdk")
    common = set(theirs[0]) & (set(ours[0]) | {"offset"})
    assert {"start", "length", "depth", "present", "zero", "data"} <= common
    assert [{key: entry[key] for key in common if key in entry} for entry in ours] == [
        {key: entry[key] for key in common if key in entry} for entry in theirs
    ]


def test_map_of_a_disk_with_zeroed_grains_equals_that_of_qemu_img(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    run("qemu-img", "create", "-f", "vmdk", "-o", "zeroed_grain=on", image, "16M")
    run("qemu-io", "-c", "write -P 1 0 64k", "-c", "write -z 1M 128k", "-c", "write -P 2 5M 1M", image)
    ours = json.loads(diskfs("map", "--json", image).stdout)
    assert [{key: entry[key] for key in entry if key != "compressed"} for entry in ours] == qemu_map(image, "vmdk")


def test_info_says_what_sfdisk_and_blkid_say(corpus: Path) -> None:
    disk = json.loads(diskfs("info", "--json", corpus / "appliances/two-disks.ova").stdout)["disks"][0]
    assert (disk["format"], disk["variant"]) == ("vmdk", "streamOptimized")
    assert disk["virtual_size"] == 530583040
    assert disk["file_size"] == 1759232
    found = [(part["number"], part["filesystem"]) for part in disk["partition_table"]["partitions"]]
    assert found == [(1, "vfat"), (2, "ext4"), (3, "xfs"), (4, "btrfs")]


def test_info_is_readable_by_people(corpus: Path) -> None:
    text = diskfs("info", corpus / "appliances/two-disks.ova").stdout
    assert "vmdk streamOptimized" in text
    assert "506 MiB (530583040 bytes)" in text
    assert re.search(r"2 +37748736 +49 MiB +ext4", text)


def test_verify_of_a_sound_appliance_is_0_and_of_a_damaged_one_3(corpus: Path, tmp_path: Path) -> None:
    sound = corpus / "appliances/two-disks.ova"
    assert "sound" in diskfs("verify", sound).stdout
    damaged = tmp_path / "damaged.ova"
    data = bytearray(sound.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    result = diskfs("verify", "--json", damaged, expect=3)
    report = json.loads(result.stdout)
    assert report["verdict"] == "damaged"
    rules = {finding["rule"] for finding in report["findings"] if finding["severity"] == "error"}
    assert "manifest-digest" in rules


def test_verify_names_every_damaged_grain(tmp_path: Path) -> None:
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.vmdk"
    raw.write_bytes(os.urandom(MIB))
    run("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, image)
    assert diskfs("verify", image).stdout.strip().endswith("sound (1 disk)")
    data = bytearray(image.read_bytes())
    for grain in (3, 7):
        at = 0x10000 + grain * 129 * 512
        assert int.from_bytes(data[at : at + 8], "little") == grain * 128
        data[at + 1000] ^= 0xFF
    image.write_bytes(data)
    lines = diskfs("verify", image, expect=3).stdout
    assert "grain 3 " in lines
    assert "grain 7 " in lines
    assert lines.count("error:") == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["info", "--help"], 0),
        (["--version"], 0),
        ([], 2),
        (["frobnicate"], 2),
        (["info"], 2),
        (["info", "--frobnicate", "x"], 2),
        (["cat", "--offset", "-1", "x"], 2),
        (["cat", "--length", "12Q", "x"], 2),
        (["map", "--disk", "x", "y"], 2),
        (["info", "no-such-file"], 1),
        (["info", "s3://bucket/key"], 1),
        (["info", "/dev/null"], 1),
        (["info", "/"], 1),
        (["umount", "/"], 1),
    ],
)
def test_exit_codes(arguments: list[str], code: int) -> None:
    result = diskfs(*arguments, expect=code)
    if code == 1:
        assert result.stdout == ""
        assert result.stderr.startswith("diskfs: ")
        assert result.stderr.count("\n") == 1


def test_a_disk_or_partition_that_is_not_there_is_named(corpus: Path) -> None:
    appliance = corpus / "appliances/two-disks.ova"
    assert "no disk 2" in diskfs("map", "--disk", 2, appliance, expect=1).stderr
    assert "no partition 9" in diskfs("map", "--partition", 9, appliance, expect=1).stderr


def test_cat_of_a_partition_is_the_file_system_on_it(corpus: Path) -> None:
    command = [sys.executable, "-m", "diskfs", "cat", "--partition", "2", str(corpus / "appliances/two-disks.ova")]
    data = subprocess.run(command, env=environment(), capture_output=True, check=True).stdout
    assert len(data) == 49 * MIB
    assert data[1080:1082] == b"\x53\xef"


def test_cat_ends_as_cat_does_when_the_reader_has_seen_enough(corpus: Path) -> None:
    script = (
        f"set -o pipefail; {sys.executable} -m diskfs cat {corpus}/appliances/two-disks.ova | head -c 100000 | wc -c"
    )
    result = subprocess.run(["bash", "-c", script], env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 141
    assert result.stdout.strip() == "100000"
    assert result.stderr == ""


def test_cat_refuses_a_terminal(corpus: Path) -> None:
    command = f"{sys.executable} -m diskfs cat {corpus}/dfvfs/ext2.raw"
    result = subprocess.run(
        ["script", "-qec", command, "/dev/null"], env=environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "terminal" in result.stdout


def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "FIFO" in diskfs("info", tmp_path / "pipe", expect=1, timeout=5).stderr


@pytest.mark.parametrize("module", ["boto3", "pyfuse3", "trio", "construct", "pygments", "deflate", "defusedxml"])
def test_help_imports_nothing_slow(module: str) -> None:
    code = (
        "import sys\nfrom diskfs.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"sys.exit({module!r} in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, capture_output=True)


def test_info_of_a_single_image_loads_neither_fuse_nor_xml(corpus: Path) -> None:
    code = (
        "import sys\nfrom diskfs.cli.main import main\n"
        f"main(['info', {str(corpus / 'dfvfs/ext2.vmdk')!r}])\n"
        "sys.exit(bool({'trio', 'pyfuse3', 'defusedxml', 'xml.etree.ElementTree'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, capture_output=True)
