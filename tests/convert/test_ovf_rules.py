"""Descriptors that are made for disks follow DMTF's schema of OVF 1.1.1, whose content models are written down here.

Specification: DMTF DSP8023 1.1.1 (XML schema) and DSP0243 1.1.1. The schemas of CIM's classes, which DSP8023 imports,
list an item's elements in alphabetical order. Where COT, the Common OVF Tool, is installed, it reads the result too.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from diskfs_formats.ovf_writing import WrittenDisk, made_descriptor
from tests.convert.commands import MIB, diskfs
from tests.fuse.mounting import run

OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
CIM = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_"
RASD, VSSD = f"{CIM}ResourceAllocationSettingData}}", f"{CIM}VirtualSystemSettingData}}"
COUNTS = [1, 2, 7, 8, 15, 16, 31]


def _is_number_up_to(limit: int) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(r"[0-9]+", text) is not None and int(text) <= limit


def _is_text(_text: str) -> bool:
    return True


@dataclass(frozen=True)
class Model:
    """What the schema says of an element: its children in their order, each with how many at least and at most, and
    its attributes of OVF's own name space, each with the test of its value; those that end with `?` are optional."""

    children: Mapping[str, tuple[int, int]]
    attributes: Mapping[str, Callable[[str], bool]]


MANY = 1 << 30
UNSIGNED_LONG, LONG, UNSIGNED_SHORT = (_is_number_up_to((1 << bits) - 1) for bits in (64, 63, 16))
MODELS = {
    "Envelope": Model({"References": (1, 1), "DiskSection": (0, 1), "VirtualSystem": (1, 1)}, {}),
    "References": Model({"File": (0, MANY)}, {}),
    "File": Model({}, {"id": _is_text, "href": lambda text: " " not in text, "size?": UNSIGNED_LONG}),
    "DiskSection": Model({"Info": (1, 1), "Disk": (0, MANY)}, {}),
    "Disk": Model(
        {},
        {
            "diskId": _is_text,
            "fileRef?": _is_text,
            "capacity": LONG,
            "capacityAllocationUnits?": _is_text,
            "format?": _is_text,
            "populatedSize?": LONG,
        },
    ),
    "VirtualSystem": Model(
        {"Info": (1, 1), "Name": (0, 1), "OperatingSystemSection": (0, 1), "VirtualHardwareSection": (0, MANY)},
        {"id": _is_text},
    ),
    "OperatingSystemSection": Model({"Info": (1, 1), "Description": (0, 1)}, {"id": UNSIGNED_SHORT}),
    "VirtualHardwareSection": Model({"Info": (1, 1), "System": (0, 1), "Item": (0, MANY)}, {}),
}
ITEM = [
    "Address", "AddressOnParent", "AllocationUnits", "AutomaticAllocation", "AutomaticDeallocation", "Caption",
    "ChangeableType", "ConfigurationName", "Connection", "ConsumerVisibility", "Description", "ElementName",
    "Generation", "HostResource", "InstanceID", "Limit", "MappingBehavior", "OtherResourceType", "Parent", "PoolID",
    "Reservation", "ResourceSubType", "ResourceType", "VirtualQuantity", "VirtualQuantityUnits", "Weight",
]  # fmt: skip
REQUIRED_OF_ITEM = {"ElementName", "InstanceID"}
NUMBERS_OF_ITEM = {"ResourceType": UNSIGNED_SHORT, "VirtualQuantity": UNSIGNED_LONG}
SYSTEM = ["Caption", "Description", "ElementName", "InstanceID", "VirtualSystemIdentifier", "VirtualSystemType"]


def require_valid(element: "ET.Element[str]") -> None:
    """Fail where an element, or one below it, is not as the schema has it."""
    name = element.tag.removeprefix(OVF)
    if name in ("Item", "System"):
        require_class(element, RASD if name == "Item" else VSSD, ITEM if name == "Item" else SYSTEM)
        return
    if name in ("Info", "Name", "Description"):
        assert len(element) == 0
        return
    model = MODELS[name]
    order = list(model.children)
    found = [child.tag.removeprefix(OVF) for child in element]
    assert set(found) <= set(order), name
    assert found == sorted(found, key=order.index), f"{name}: the order of {found}"
    for child, (least, most) in model.children.items():
        assert least <= found.count(child) <= most, f"{name}: {child}"
    attributes = {key.removeprefix(OVF): value for key, value in element.attrib.items() if key.startswith(OVF)}
    for key, is_valid in model.attributes.items():
        value = attributes.pop(key.removesuffix("?"), None)
        assert value is not None or key.endswith("?"), f"{name}: no {key}"
        assert value is None or is_valid(value), f"{name}: {key}={value!r}"
    assert not attributes, name
    for each in element:
        require_valid(each)


def require_class(element: "ET.Element[str]", name_space: str, order: list[str]) -> None:
    """Fail where the values of a CIM class are not in its schema's order, are twice there, or not of their type."""
    found = [child.tag.removeprefix(name_space) for child in element]
    assert found == sorted(set(found), key=order.index)
    assert set(found) >= REQUIRED_OF_ITEM
    for child, key in zip(element, found, strict=True):
        assert NUMBERS_OF_ITEM.get(key, _is_text)(child.text or ""), (key, child.text)


def disks(count: int) -> list[WrittenDisk]:
    return [WrittenDisk(f"vm-disk{number}.vmdk", 70_000 + number, 10 * MIB, MIB) for number in range(1, count + 1)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["vm", "<\"Ünïcode\" & 'more'>"])
def test_a_made_descriptor_follows_the_schema(count: int, name: str) -> None:
    root = ET.fromstring(made_descriptor(disks(count), name))
    require_valid(root)
    identifiers = [element.attrib[f"{OVF}id"] for element in root.iter(f"{OVF}File")]
    assert len(set(identifiers)) == count
    assert [element.attrib[f"{OVF}fileRef"] for element in root.iter(f"{OVF}Disk")] == identifiers


@pytest.mark.parametrize("count", COUNTS)
def test_items_refer_to_what_is_there_and_no_two_disks_share_a_place(count: int) -> None:
    root = ET.fromstring(made_descriptor(disks(count), "vm"))
    items = [
        {child.tag.removeprefix(RASD): child.text or "" for child in item} for item in root.iter(f"{OVF}Item")
    ]  # fmt: skip
    by_id = {item["InstanceID"]: item for item in items}
    assert len(by_id) == len(items)
    hard_disks = [item for item in items if item["ResourceType"] == "17"]
    described = [f"ovf:/disk/{disk.attrib[f'{OVF}diskId']}" for disk in root.iter(f"{OVF}Disk")]
    assert [item["HostResource"] for item in hard_disks] == described
    assert all(by_id[item["Parent"]]["ResourceType"] == "6" for item in hard_disks)
    places = {(item["Parent"], item["AddressOnParent"]) for item in hard_disks}
    assert len(places) == count


@pytest.mark.parametrize(
    ("taken", "given"),
    [
        ("<Info>Virtual disks</Info>", ""),
        (' ovf:capacity="10485760"', ""),
        ('ovf:size="70001"', 'ovf:size="-1"'),
        ('ovf:id="102"', 'ovf:id="70000"'),
        ("<rasd:InstanceID>1</rasd:InstanceID>", ""),
        ("<rasd:ElementName>1 virtual CPU</rasd:ElementName>", ""),
        ("<rasd:Address>", "<rasd:AddressOnParent>1</rasd:AddressOnParent><rasd:Address>"),
        ("<Name>vm</Name>", "<Name>vm</Name><Name>vm</Name>"),
        ("<Info>A virtual machine</Info>\n    <Name>vm</Name>", "<Name>vm</Name><Info>A virtual machine</Info>"),
    ],
)  # fmt: skip
def test_the_rules_see_what_breaks_them(taken: str, given: str) -> None:
    text = made_descriptor(disks(1), "vm").decode()
    require_valid(ET.fromstring(text))
    assert taken in text
    with pytest.raises(AssertionError):
        require_valid(ET.fromstring(text.replace(taken, given)))


@pytest.mark.skipif(
    shutil.which("cot") is None, reason="COT is not installed (pip install cot 'setuptools<80' in its own environment)"
)
def test_cot_reads_an_appliance_with_its_disks_and_their_places(corpus: Path, tmp_path: Path) -> None:
    made, kept, raw = tmp_path / "made.ova", tmp_path / "kept.ova", tmp_path / "disk.raw"
    run("truncate", "-s", "10M", raw)
    diskfs("convert", raw, made)
    diskfs("convert", corpus / "appliances/two-disks.ova", kept)
    # COT knows SHA-1 alone, and says on its standard error that these digests are none.
    shown = [
        subprocess.run(["cot", "info", "--brief", each], capture_output=True, text=True, check=True).stdout
        for each in (made, kept)
    ]
    assert re.search(r"made-disk1\.vmdk .* 10 MiB harddisk @ SCSI 0:0", shown[0])
    assert re.search(r"vm-disk1\.vmdk .* 506 MiB harddisk @ SCSI", shown[1])
    assert re.search(r"vm-disk2\.vmdk .* 64\.01 MiB harddisk @ SCSI", shown[1])
