"""`diskfs compare` says what qemu-img compare says, and reads only what it must."""

import json
from pathlib import Path

import jsonschema
import pytest

from tests.convert.commands import MIB, diskfs, make_raw
from tests.fuse.mounting import ROOT, run


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path / "disk.raw")


@pytest.mark.parametrize("form", ["streamOptimized", "monolithicSparse", "monolithicFlat"])
def test_the_same_disk_in_two_formats_is_the_same(form: str, raw: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={form}", raw, image)
    result = diskfs("compare", raw, image)
    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.parametrize("offset", [0, 511, 65536, 7 * MIB + 1, 9 * MIB, 20 * MIB + 2559])
@pytest.mark.parametrize("is_swapped", [False, True])
def test_the_first_difference_is_named(offset: int, is_swapped: bool, raw: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.raw"
    run("cp", "--sparse=always", raw, other)
    with other.open("r+b") as file:
        for at in {offset, 20 * MIB + 2559}:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 0x80]))
    pair = (other, raw) if is_swapped else (raw, other)
    result = diskfs("compare", *pair, code=1)
    assert f"offset {offset} ({offset:#x})" in result.stdout
    found = json.loads(diskfs("compare", "--json", *pair, code=1).stdout)
    jsonschema.validate(found, schema())
    assert (found["same"], found["first_difference"]) == (False, offset)


def schema() -> dict[str, object]:
    found: dict[str, object] = json.loads((ROOT / "docs/schemas/compare.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def test_the_answer_in_json_follows_its_schema_whatever_it_is(raw: Path, tmp_path: Path) -> None:
    longer = tmp_path / "longer.raw"
    run("cp", "--sparse=always", raw, longer)
    run("truncate", "-s", "+3M", longer)
    same = json.loads(diskfs("compare", "--json", raw, longer).stdout)
    size = 20 * MIB + 2560
    wanted = {"a": str(raw), "b": str(longer), "same": True, "first_difference": None}
    assert same == {**wanted, "virtual_size_a": size, "virtual_size_b": size + 3 * MIB}
    strict = json.loads(diskfs("compare", "--json", "--strict", raw, longer, code=1).stdout)
    assert strict == {**same, "same": False, "first_difference": size}
    for answer in (same, strict):
        jsonschema.validate(answer, schema())
    for wrong in ({"same": True, "first_difference": 0}, {"same": False, "first_difference": None}, {"a": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**same, **wrong}, schema())


def test_a_longer_disk_is_the_same_if_it_goes_on_with_zeroes(raw: Path, tmp_path: Path) -> None:
    longer = tmp_path / "longer.raw"
    run("cp", "--sparse=always", raw, longer)
    run("truncate", "-s", "+3M", longer)
    assert "different sizes" in diskfs("compare", raw, longer).stderr
    assert diskfs("compare", "--quiet", longer, raw).stderr == ""
    diskfs("compare", "--strict", "--quiet", raw, longer, code=1)
    with longer.open("r+b") as file:
        file.seek(22 * MIB)
        file.write(b"x")
    assert f"offset {22 * MIB} " in diskfs("compare", "--quiet", raw, longer, code=1).stdout


def test_what_cannot_be_read_is_trouble_and_not_a_difference(raw: Path, tmp_path: Path) -> None:
    assert "there is no such file" in diskfs("compare", raw, tmp_path / "missing", code=2).stderr
    cut = tmp_path / "cut.vmdk"
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, cut)
    with cut.open("r+b") as file:
        file.truncate(66_048)
    diskfs("compare", raw, cut, code=2)


def test_huge_disks_with_little_in_them_are_compared_at_once(tmp_path: Path) -> None:
    one, other = tmp_path / "one.raw", tmp_path / "other.vhdx"
    run("truncate", "-s", "1T", one)
    run("qemu-io", "-f", "raw", "-c", "write -P 5 512G 1M", one)
    diskfs("convert", one, other)
    diskfs("compare", one, other)


def test_disks_of_appliances_are_compared(corpus: Path, tmp_path: Path) -> None:
    appliance = corpus / "appliances/two-disks.ova"
    diskfs("convert", appliance, tmp_path / "one.raw", "--disk", 1)
    diskfs("compare", appliance, tmp_path / "one.raw", "--disk-a", 1)
    diskfs("compare", "--quiet", appliance, tmp_path / "one.raw", code=1)
