"""OVF descriptors: real ones of many producers, the order of disks, units, references, and what is refused."""

import re
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from defusedxml.ElementTree import DefusedXMLParser

from diskfs_formats import ovf
from diskfs_formats.errors import CorruptImage, DiskfsError, UnsafeReference, UnsupportedFeature
from diskfs_formats.ovf import (
    MAX_ATTRIBUTES,
    MAX_DEPTH,
    MAX_DESCRIPTOR_SIZE,
    MAX_ELEMENTS,
    OvfDescriptor,
    parse_descriptor,
    resolve_href,
    unit_size,
)
from tests.helpers import STORED_CORPUS

ENVELOPE_1 = "http://schemas.dmtf.org/ovf/envelope/1"


def envelope(body: str, namespace: str = ENVELOPE_1) -> bytes:
    """An envelope with the namespaces that producers declare."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<Envelope xmlns="{namespace}" xmlns:ovf="{namespace}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        'xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">'
        f"{body}</Envelope>"
    ).encode()


def references(*names: str) -> str:
    """File elements; each id is the name without its suffix."""
    files = "".join(f'<File ovf:id="{name.partition(".")[0]}" ovf:href="{name}"/>' for name in names)
    return f"<References>{files}</References>"


def disk_section(*pairs: tuple[str, str | None]) -> str:
    """Disk elements from (diskId, fileRef)."""
    disks = "".join(
        f'<Disk ovf:diskId="{disk_id}" ovf:capacity="1"' + (f' ovf:fileRef="{file}"/>' if file else "/>")
        for disk_id, file in pairs
    )
    return f"<DiskSection><Info/>{disks}</DiskSection>"


def item(instance: str, kind: int, *, configuration: str = "", element: str = "Item", **texts: str) -> str:
    """A hardware item; keywords are the names of its elements."""
    attribute = f' ovf:configuration="{configuration}"' if configuration else ""
    children = "".join(f"<rasd:{name}>{text}</rasd:{name}>" for name, text in texts.items())
    return (
        f"<{element}{attribute}><rasd:InstanceID>{instance}</rasd:InstanceID>{children}"
        f"<rasd:ResourceType>{kind}</rasd:ResourceType></{element}>"
    )


def disk_item(instance: str, disk_id: str, parent: str = "", address: str = "", configuration: str = "") -> str:
    """A hard disk on a controller."""
    texts = {"HostResource": f"ovf:/disk/{disk_id}"}
    if parent:
        texts["Parent"] = parent
    if address:
        texts["AddressOnParent"] = address
    return item(instance, 17, configuration=configuration, **texts)


def system(*items: str) -> str:
    """A virtual system with one hardware section."""
    return (
        f'<VirtualSystem ovf:id="vm"><Info/><Name>vm</Name><VirtualHardwareSection><Info/>{"".join(items)}'
        "</VirtualHardwareSection></VirtualSystem>"
    )


def parse(body: str) -> OvfDescriptor:
    return parse_descriptor(envelope(body), "vm.ovf")


def order(descriptor: OvfDescriptor) -> list[str]:
    return [disk.disk_id for disk in descriptor.disk_order()]


def rules(descriptor: OvfDescriptor) -> list[str]:
    return [finding.rule for finding in descriptor.findings]


THREE = references("a.vmdk", "b.vmdk", "c.vmdk") + disk_section(("A", "a"), ("B", "b"), ("C", "c"))


# The corpus


@pytest.fixture(scope="module")
def descriptors() -> list[tuple[str, bytes]]:
    """The 791 descriptors of the corpus."""
    packed = STORED_CORPUS / "govmomi-ovf.tar.xz"
    if not packed.exists():
        pytest.skip(f"there is no corpus at {STORED_CORPUS}")
    with tarfile.open(packed) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar if member.isfile()]  # type: ignore[union-attr] # a regular file has content


def tags_of(data: bytes, element: str) -> list[str]:
    """The start tags of all elements of that name, found in the text without an XML parser."""
    text = re.sub(r"<!--.*?-->", "", data.decode("utf-8", "replace"), flags=re.DOTALL)
    return re.findall(rf"<(?:\w+:)?{element}\s[^>]*>", text)


def attribute_values(data: bytes, element: str, attribute: str) -> list[str]:
    """The values of an attribute of these elements, where they have it."""
    matches = [re.search(rf'[\s:]{attribute}="([^"]*)"', tag) for tag in tags_of(data, element)]
    return [match[1] for match in matches if match]


def test_every_real_descriptor_is_parsed_quickly(descriptors: Sequence[tuple[str, bytes]]) -> None:
    assert len(descriptors) == 791
    refused = {}
    for name, data in descriptors:
        start = time.perf_counter()
        try:
            parse_descriptor(data, name)
        except DiskfsError as error:
            refused[name.rpartition("/")[0].rpartition("/")[2]] = str(error)
        assert time.perf_counter() - start < 2, name
    # These three are web pages that were saved under the name.
    assert set(refused) == {"Sass_old", "SasPvScsi_old", "PvScsis_old"}
    assert all("the root element is 'HTML'" in message for message in refused.values())


def test_no_real_descriptor_loses_a_file_of_a_disk(descriptors: Sequence[tuple[str, bytes]]) -> None:
    seen = 0
    for name, data in descriptors:
        if b"<HTML" in data:
            continue
        descriptor = parse_descriptor(data, name)
        assert [file.href for file in descriptor.files] == attribute_values(data, "File", "href"), name
        used = {file.href for disk in descriptor.disk_order() if (file := descriptor.file_of(disk))}
        hrefs = {file.id: file.href for file in descriptor.files}
        expected = {hrefs[reference] for reference in attribute_values(data, "Disk", "fileRef") if reference}
        assert used == expected, name
        assert len(used) == len(descriptor.disk_order()), name
        seen += len(used)
    assert seen > 700


def test_capacities_of_real_descriptors_are_understood(descriptors: Sequence[tuple[str, bytes]]) -> None:
    units = {"": 1, "byte": 1, "byte * 2^20": 1 << 20, "byte * 2^30": 1 << 30}
    for name, data in descriptors:
        if b"<HTML" in data:
            continue
        found = [disk.capacity for disk in parse_descriptor(data, name).disks]
        expected = []
        for tag in tags_of(data, "Disk"):
            if "diskId" in tag:
                unit = re.search(r'capacityAllocationUnits="([^"]*)"', tag)
                capacity = re.search(r'capacity="(\d+)"', tag)
                assert capacity, name
                expected.append(int(capacity[1]) * units[unit[1] if unit else ""])
        assert found == expected, name


# The order of disks


def test_disks_without_hardware_are_in_the_order_of_the_disk_section() -> None:
    assert order(parse(THREE)) == ["A", "B", "C"]


def test_address_on_the_controller_is_compared_as_a_number() -> None:
    body = system(
        item("3", 6), disk_item("4", "C", "3", "10"), disk_item("5", "B", "3", "9"), disk_item("6", "A", "3", "0")
    )
    assert order(parse(THREE + body)) == ["A", "B", "C"]


def test_controllers_are_in_the_order_of_the_document_and_not_of_their_numbers() -> None:
    body = system(
        item("9", 5),
        item("4", 6),
        disk_item("5", "A", "4", "0"),
        disk_item("6", "B", "9", "1"),
        disk_item("7", "C", "9", "0"),
    )
    assert order(parse(THREE + body)) == ["C", "B", "A"]


def test_a_disk_before_its_controller_in_the_document_still_belongs_to_it() -> None:
    body = system(disk_item("5", "A", "4", "1"), disk_item("6", "B", "4", "0"), item("4", 6))
    assert order(parse(THREE + body)) == ["B", "A", "C"]


def test_instance_ids_need_not_be_numbers() -> None:
    body = system(item("scsi", 6), item("ide", 5), disk_item("x", "A", "ide", "0"), disk_item("y", "B", "scsi", "0"))
    assert order(parse(THREE + body)) == ["B", "A", "C"]


def test_disks_without_a_place_come_after_those_that_have_one() -> None:
    body = system(disk_item("4", "A"), item("3", 6), disk_item("5", "B", "99", "0"), disk_item("6", "C", "3", "x"))
    assert order(parse(THREE + body)) == ["C", "B", "A"]


def test_disks_that_no_machine_names_come_last() -> None:
    assert order(parse(THREE + system(item("3", 6), disk_item("4", "C", "3", "0")))) == ["C", "A", "B"]


def test_machines_of_a_collection_are_in_the_order_of_the_document() -> None:
    inner = "<VirtualSystemCollection><Info/>" + system(disk_item("4", "B")) + "</VirtualSystemCollection>"
    body = "<VirtualSystemCollection><Info/>" + system(disk_item("4", "C")) + inner + system(disk_item("4", "A"))
    descriptor = parse(THREE + body + "</VirtualSystemCollection>")
    assert order(descriptor) == ["C", "B", "A"]
    assert [machine.name for machine in descriptor.systems] == ["vm", "vm", "vm"]


def test_controllers_of_two_machines_are_not_confused() -> None:
    one = system(item("1", 6), item("2", 5), disk_item("4", "A", "2", "0"), disk_item("5", "B", "1", "0"))
    two = system(item("2", 5), item("1", 6), disk_item("4", "C", "1", "0"))
    assert order(parse(THREE + one + two)) == ["B", "A", "C"]


def test_a_second_hardware_section_is_an_alternative() -> None:
    first = item("1", 6) + disk_item("2", "B", "1", "0") + disk_item("3", "A", "1", "1")
    second = item("1", 20) + disk_item("2", "A", "1", "0") + disk_item("3", "B", "1", "1") + disk_item("4", "C", "1")
    sections = "".join(f"<VirtualHardwareSection><Info/>{part}</VirtualHardwareSection>" for part in (first, second))
    assert order(parse(THREE + f"<VirtualSystem>{sections}</VirtualSystem>")) == ["B", "A", "C"]


def configurations(*identifiers: str, default: str = "") -> str:
    elements = "".join(
        f'<Configuration ovf:id="{identifier}"' + (' ovf:default="true"/>' if identifier == default else "/>")
        for identifier in identifiers
    )
    return f"<DeploymentOptionSection>{elements}</DeploymentOptionSection>"


def test_hardware_of_the_default_configuration_goes_first() -> None:
    body = system(item("3", 6), disk_item("4", "A", "3", "0", "small"), disk_item("5", "B", "3", "1", "large other"))
    assert order(parse(THREE + configurations("small", "large", default="large") + body)) == ["B", "A", "C"]


def test_the_first_configuration_is_the_default_where_none_says_so() -> None:
    body = system(item("3", 6), disk_item("4", "A", "3", "0", "large"), disk_item("5", "B", "3", "1", "small"))
    assert order(parse(THREE + configurations("small", "large") + body)) == ["B", "A", "C"]


def test_hardware_without_a_configuration_belongs_to_all() -> None:
    body = system(item("3", 6), disk_item("4", "A", "3", "1"), disk_item("5", "B", "3", "0", "small"))
    assert order(parse(THREE + configurations("small") + body)) == ["B", "A", "C"]


def test_a_file_that_two_disks_share_is_shown_once_at_its_first_place() -> None:
    body = references("a.vmdk", "b.vmdk") + disk_section(("A1", "a"), ("B", "b"), ("A2", "a"))
    descriptor = parse(body + system(disk_item("1", "A2"), disk_item("2", "B"), disk_item("3", "A1")))
    assert order(descriptor) == ["A2", "B"]
    assert [(finding.rule, finding.severity.value) for finding in descriptor.findings] == [
        ("ovf-file-shared", "warning")
    ]


def test_sharing_a_file_between_configurations_is_no_warning() -> None:
    descriptor = parse(references("a.vmdk") + disk_section(("A1", "a"), ("A2", "a")) + configurations("small", "large"))
    assert [(finding.rule, finding.severity.value) for finding in descriptor.findings] == [("ovf-file-shared", "info")]


def test_a_disk_that_two_items_name_is_no_shared_file() -> None:
    assert rules(parse(THREE + system(disk_item("1", "A"), disk_item("2", "A")))) == []


def test_disks_without_a_file_are_listed_apart() -> None:
    descriptor = parse(references("a.vmdk") + disk_section(("E", None), ("A", "a")) + system(disk_item("1", "E")))
    assert order(descriptor) == ["A"]
    assert [disk.disk_id for disk in descriptor.empty_disks] == ["E"]


@pytest.mark.parametrize("reference", ["ovf:/disk/B", "/disk/B", "ovf://disk/B", "//disk/B"])
def test_every_form_of_a_disk_reference(reference: str) -> None:
    assert order(parse(THREE + system(item("1", 17, HostResource=reference)))) == ["B", "A", "C"]


@pytest.mark.parametrize("element", ["Item", "StorageItem"])
def test_ovf_2_calls_the_item_of_a_disk_storage_item(element: str) -> None:
    body = item("1", 17, HostResource="ovf:/disk/C", element=element)
    assert order(parse(THREE + system(body))) == ["C", "A", "B"]


def test_a_file_reference_of_a_hard_disk_is_a_disk() -> None:
    body = references("a.vmdk", "b.iso") + system(
        item("1", 17, HostResource="ovf:/file/a"),
        item("2", 15, HostResource="ovf:/file/a"),
        item("3", 17, HostResource="/file/b"),
    )
    descriptor = parse(body)
    assert [descriptor.file_of(disk) for disk in descriptor.disk_order()] == [descriptor.files[0]]


def test_a_file_reference_hides_no_disk_of_the_same_id() -> None:
    body = references("a.vmdk", "b.vmdk") + disk_section(("a", "b")) + system(item("1", 17, HostResource="/file/a"))
    descriptor = parse(body)
    assert [descriptor.file_of(disk) for disk in descriptor.disk_order()] == list(descriptor.files)


def test_other_devices_may_name_what_they_like() -> None:
    assert order(parse(THREE + system(item("1", 15, HostResource="C"), item("2", 16, HostResource="b")))) == [
        "A",
        "B",
        "C",
    ]


def test_a_file_reference_to_the_file_of_a_listed_disk_is_that_disk() -> None:
    assert order(parse(THREE + system(item("1", 17, HostResource="ovf:/file/b")))) == ["B", "A", "C"]


def test_a_machine_s_disk_that_is_not_listed_is_a_finding() -> None:
    assert rules(parse(THREE + system(disk_item("1", "nowhere")))) == ["ovf-disk-missing"]


def test_a_disk_whose_file_is_not_listed_stays_in_its_place() -> None:
    descriptor = parse(references("a.vmdk") + disk_section(("X", "nowhere"), ("A", "a")))
    assert order(descriptor) == ["X", "A"]
    assert descriptor.file_of(descriptor.disks[0]) is None
    assert rules(descriptor) == ["ovf-file-missing"]


# Producers


OVIRT = """<?xml version="1.0" encoding="UTF-8"?>
<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1/" ovf:version="4.1.0.0"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
 xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
 <References>
  <File ovf:href="d1/v1" ovf:id="v1" ovf:size="1000"/><File ovf:href="d2/v2" ovf:id="v2" ovf:size="2000"/>
  <Nic ovf:id="n1"/>
 </References>
 <Section xsi:type="ovf:DiskSection_Type"><Info>List of Virtual Disks</Info>
  <Disk ovf:diskId="v1" ovf:size="10" ovf:actual_size="1" ovf:parentRef="" ovf:fileRef="d1/v1"
   ovf:format="http://en.wikipedia.org/wiki/Byte" ovf:volume-format="RAW"/>
  <Disk ovf:diskId="v2" ovf:size="3" ovf:actual_size="1" ovf:parentRef="" ovf:fileRef="d2/v2"/>
 </Section>
 <Content ovf:id="out" xsi:type="ovf:VirtualSystem_Type"><Name>machine</Name>
  <Section xsi:type="ovf:VirtualHardwareSection_Type">
   <Item><rasd:InstanceId>v2</rasd:InstanceId><rasd:ResourceType>17</rasd:ResourceType>
    <rasd:HostResource>d2/v2</rasd:HostResource><rasd:Parent>00000000-0000-0000-0000-000000000000</rasd:Parent></Item>
   <Item><rasd:InstanceId>v1</rasd:InstanceId><rasd:ResourceType>17</rasd:ResourceType>
    <rasd:HostResource>other/v1</rasd:HostResource></Item>
  </Section>
 </Content>
</ovf:Envelope>"""


def test_ovirt_s_dialect() -> None:
    descriptor = parse_descriptor(OVIRT.encode(), "vm.ovf")
    assert [(file.id, file.href, file.size) for file in descriptor.files] == [
        ("v1", "d1/v1", 1000),
        ("v2", "d2/v2", 2000),
    ]
    assert [(disk.disk_id, disk.capacity, disk.parent_ref) for disk in descriptor.disk_order()] == [
        ("v2", 3 << 30, ""),
        ("v1", 10 << 30, ""),
    ]
    assert [descriptor.file_of(disk) for disk in descriptor.disks] == list(descriptor.files)
    assert [machine.name for machine in descriptor.systems] == ["machine"]
    assert [machine_item.instance_id for machine_item in descriptor.systems[0].items] == ["v2", "v1"]
    assert rules(descriptor) == []


def test_vmware_s_draft_0_9(corpus: Path) -> None:
    descriptor = parse_descriptor((corpus / "cot/v0.9.ovf").read_bytes(), "v0.9.ovf")
    assert [(disk.disk_id, disk.capacity) for disk in descriptor.disk_order()] == [("vmdisk1", 1 << 30)]
    assert [file.href for file in descriptor.files] == ["input.vmdk"]
    assert len(descriptor.systems[0].items) == 8


def test_virtualbox_s_export(corpus: Path) -> None:
    descriptor = parse_descriptor((corpus / "gce-import/from-virtualbox.ovf").read_bytes(), "vbox.ovf")
    assert [file.href for file in descriptor.files] == ["ubuntu-xenial-16-disk001.vmdk"]
    assert order(descriptor) == ["vmdisk1"]


def test_deployment_configurations_of_vm_operator_s_uber_appliance(corpus: Path) -> None:
    with tarfile.open(corpus / "vm-operator/uber.ova") as tar:
        text = tar.extractfile("uber.ovf").read()  # type: ignore[union-attr] # it is a file
    descriptor = parse_descriptor(text, "uber.ovf")
    files = [descriptor.file_of(disk) for disk in descriptor.disk_order()]
    assert [file.href for file in files if file] == ["disk0.vmdk", "disk1.vmdk", "disk2.vmdk"]
    assert descriptor.default_configuration == "large"
    assert [(disk.disk_id, disk.capacity, disk.capacity_text) for disk in descriptor.empty_disks] == [
        ("scratch_small", None, "${scratch_space_size_small}"),
        ("scratch_large", None, "${scratch_space_size_large}"),
    ]
    assert rules(descriptor) == ["ovf-file-shared", "ovf-file-shared"]


def test_attributes_of_the_file_element() -> None:
    body = '<References><File ovf:id="f" ovf:href="d.vmdk" ovf:size="7" ovf:compression="GZIP" ovf:chunkSize="5"/>'
    (file,) = parse(body + "</References>").files
    assert (file.id, file.href, file.size, file.compression, file.chunk_size) == ("f", "d.vmdk", 7, "gzip", 5)


@pytest.mark.parametrize(("attribute", "value"), [("size", "abcd"), ("size", "-1"), ("chunkSize", "1e3")])
def test_numbers_of_a_file_that_are_none_are_findings(attribute: str, value: str) -> None:
    descriptor = parse(f'<References><File ovf:id="f" ovf:href="d" ovf:{attribute}="{value}"/></References>')
    assert rules(descriptor) == ["ovf-file"]
    assert (descriptor.files[0].size, descriptor.files[0].chunk_size) == (None, None)


def test_attributes_of_the_disk_element() -> None:
    body = (
        '<DiskSection><Disk ovf:diskId="d" ovf:capacity="2" ovf:capacityAllocationUnits="byte * 2^30" ovf:fileRef="f" '
        'ovf:format="http://x#streamOptimized" ovf:parentRef="base"/></DiskSection>'
    )
    (disk,) = parse(references("f.vmdk") + body).disks
    assert (disk.disk_id, disk.file_ref, disk.capacity, disk.capacity_text) == ("d", "f", 2 << 30, "2")
    assert (disk.format_uri, disk.parent_ref) == ("http://x#streamOptimized", "base")


def test_attributes_without_a_namespace_are_read() -> None:
    descriptor = parse('<References><File id="f" href="d.vmdk"/></References>')
    assert [(file.id, file.href) for file in descriptor.files] == [("f", "d.vmdk")]


def test_attributes_of_the_ovf_namespace_go_before_others() -> None:
    body = '<References><File href="no" xmlns:x="urn:x" x:href="never" ovf:href="yes" id="f" x:id="g"/></References>'
    assert [(file.id, file.href) for file in parse(body).files] == [("f", "yes")]


@pytest.mark.parametrize(
    "namespace",
    [
        ENVELOPE_1,
        ENVELOPE_1 + "/",
        "http://schemas.dmtf.org/ovf/envelope/2",
        "http://www.vmware.com/schema/ovf/1/envelope",
    ],
)
def test_namespaces_of_all_versions(namespace: str) -> None:
    descriptor = parse_descriptor(envelope(THREE, namespace), "vm.ovf")
    assert order(descriptor) == ["A", "B", "C"]
    assert rules(descriptor) == []


def test_an_unknown_namespace_is_a_finding() -> None:
    descriptor = parse_descriptor(envelope(THREE, "urn:something"), "vm.ovf")
    assert order(descriptor) == ["A", "B", "C"]
    assert rules(descriptor) == ["ovf-namespace"]


def test_elements_of_other_sections_are_not_files_or_disks() -> None:
    body = (
        '<VendorSection><File ovf:id="x" ovf:href="x"/><Disk ovf:diskId="x" ovf:fileRef="x"/></VendorSection>'
        f"<StartupSection>{disk_item('1', 'A')}</StartupSection>"
    )
    descriptor = parse(body)
    assert (descriptor.files, descriptor.disks, descriptor.systems) == ((), (), ())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1"])
def test_encodings(encoding: str) -> None:
    declared = encoding.removesuffix("-sig")
    text = envelope(references("disque-é.vmdk")).decode().replace("UTF-8", declared)
    assert [file.href for file in parse_descriptor(text.encode(encoding), "vm.ovf").files] == ["disque-é.vmdk"]


def test_line_ends_of_every_kind() -> None:
    data = envelope(THREE).replace(b"><", b">\r\n\r<")
    assert order(parse_descriptor(data, "vm.ovf")) == ["A", "B", "C"]


# What is refused, and the limits


@pytest.mark.parametrize("body", [references("a.x", "a.y"), disk_section(("A", None), ("A", "a"))])
def test_two_elements_of_one_id_are_refused(body: str) -> None:
    with pytest.raises(CorruptImage, match="which of them"):
        parse(body)


def test_two_files_of_one_href_are_a_finding() -> None:
    body = '<References><File ovf:id="a" ovf:href="x"/><File ovf:id="b" ovf:href="x"/></References>'
    assert rules(parse(body)) == ["ovf-href-twice"]


@pytest.mark.parametrize("root", ["HTML", "OpenTag", "Envelop"])
def test_other_xml_is_no_descriptor(root: str) -> None:
    with pytest.raises(CorruptImage, match=f"root element is '{root}', expected 'Envelope'"):
        parse_descriptor(f"<{root}/>".encode(), "vm.ovf")


def test_an_encrypted_descriptor_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedFeature, match="encrypted"):
        parse_descriptor(b'<xenc:EncryptedData xmlns:xenc="http://www.w3.org/2001/04/xmlenc#"/>', "vm.ovf")


def test_encrypted_files_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedFeature, match="encrypted"):
        parse('<EncryptionSection><e:EncryptedKey xmlns:e="http://www.w3.org/2001/04/xmlenc#"/></EncryptionSection>')


def test_an_encoding_that_is_not_read_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedFeature, match="'shift_jis'"):
        parse_descriptor(b'<?xml version="1.0" encoding="shift_jis"?><Envelope/>', "vm.ovf")


def nested(depth: int) -> str:
    return "<a>" * depth + "</a>" * depth


def test_both_sides_of_the_depth_limit() -> None:
    parse(nested(MAX_DEPTH - 1))
    with pytest.raises(CorruptImage, match="over 64 deep"):
        parse(nested(MAX_DEPTH))


def test_both_sides_of_the_element_limit() -> None:
    parse("<a/>" * (MAX_ELEMENTS - 1))
    with pytest.raises(CorruptImage, match="over 10000 elements"):
        parse("<a/>" * MAX_ELEMENTS)


def test_both_sides_of_the_size_limit() -> None:
    data = envelope("")
    parse_descriptor(data + b" " * (MAX_DESCRIPTOR_SIZE - len(data)), "vm.ovf")
    with pytest.raises(CorruptImage, match="4194305 bytes, at most 4194304"):
        parse_descriptor(data + b" " * (MAX_DESCRIPTOR_SIZE + 1 - len(data)), "vm.ovf")


def attributed(attributes: int) -> str:
    return "<a " + " ".join(f'b{number}=""' for number in range(attributes)) + "/>"


def test_both_sides_of_the_attribute_limit() -> None:
    # The envelope declares four namespaces, which count.
    almost = attributed(50) * (MAX_ATTRIBUTES // 50 - 1)
    parse(almost + attributed(46))
    with pytest.raises(CorruptImage, match="over 50000 attributes"):
        parse(almost + attributed(47))


def test_equals_signs_in_text_are_no_attributes() -> None:
    text = "a = b; " * 50_000
    parse(f"<Annotation>{text}</Annotation><A><![CDATA[{text}]]></A><!-- {text} -->")


class Waiting(DefusedXMLParser):
    """Parses what it has begun only when there is twice as much of it, and tells no place until then, as expat 2.6."""

    class Place:
        def __init__(self, expat: Any) -> None:
            self.__dict__["expat"] = expat
            self.__dict__["held"] = b""
            self.__dict__["parsed"] = 0

        def __getattr__(self, name: str) -> Any:
            return -1 if name == "CurrentByteIndex" and self.held else getattr(self.expat, name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(self.expat, name, value)

        def Parse(self, data: bytes, final: bool = False) -> None:  # noqa: N802 - expat's name
            begun = self.parsed - max(self.expat.CurrentByteIndex, 0)
            self.__dict__["held"] += data
            if final or begun + len(self.held) >= 2 * begun:
                self.expat.Parse(self.held, final)
                self.__dict__["parsed"] += len(self.held)
                self.__dict__["held"] = b""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.parser = Waiting.Place(self.parser)  # type: ignore[assignment]  # a stand-in


def test_a_parser_that_waits_for_more_is_not_taken_for_one_at_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ovf, "DefusedXMLParser", Waiting)
    files = "".join(f'<File ovf:id="f{number}" ovf:href="{number}"/>' for number in range(4000))
    found = parse(f"<References>{files}</References><!-- {'a = b; ' * 50_000} -->")
    assert len(found.files) == 4000
    many = " ".join(f'a{number}="{number}"' for number in range(50_000))
    with pytest.raises(CorruptImage, match="a tag of the descriptor has over 4096 attributes"):
        parse(f"<Tag {many}/>")


def test_findings_are_bounded() -> None:
    files = "".join(f'<File ovf:id="{number}" ovf:href="x{number}" ovf:size="?"/>' for number in range(1000))
    assert len(parse(f"<References>{files}</References>").findings) == 100


# Units


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (None, 1),
        ("byte", 1),
        ("bytes", 1),
        ("byte * 2^10", 1 << 10),
        ("byte * 2^20", 1 << 20),
        ("byte * 2^30", 1 << 30),
        ("byte * 2^40", 1 << 40),
        ("byte*2^20", 1 << 20),
        ("byte \t*  2 ^ 20", 1 << 20),
        ("byte*1024*1024", 1 << 20),
        ("byte * 10^6", 10**6),
        ("MegaBytes", 1 << 20),
        ("megabytes", 1 << 20),
        ("MB", 1 << 20),
        ("GB", 1 << 30),
        ("GigaBytes", 1 << 30),
        ("KB", 1 << 10),
        ("kilobytes", 1 << 10),
        ("TB", 1 << 40),
        ("GiB", 1 << 30),
        ("", None),
        ("furlong", None),
        ("byte * 2^99", None),
        ("byte * 0", None),
        ("byte * 9999999999999^99", None),
        ("byte * -1", None),
        ("hertz * 10^6", None),
    ],
)
def test_units(text: str | None, size: int | None) -> None:
    assert unit_size(text) == size


@pytest.mark.parametrize("capacity", ["0", "-1", "abcd", "", "1.5", "99999999999999999999", "٣"])
def test_a_capacity_that_is_none_is_a_finding_and_not_an_error(capacity: str) -> None:
    body = f'<DiskSection><Disk ovf:diskId="A" ovf:fileRef="a" ovf:capacity="{capacity}"/></DiskSection>'
    descriptor = parse(references("a.vmdk") + body)
    assert order(descriptor) == ["A"]
    assert descriptor.disks[0].capacity is None
    assert rules(descriptor) == ["ovf-capacity"]


# References


@pytest.mark.parametrize(
    ("href", "names", "expected"),
    [
        ("disk1.vmdk", {"disk1.vmdk"}, "disk1.vmdk"),
        ("./disk1.vmdk", {"disk1.vmdk"}, "disk1.vmdk"),
        ("disk%20one.vmdk", {"disk one.vmdk"}, "disk one.vmdk"),
        ("disk%20one.vmdk", {"disk one.vmdk", "disk%20one.vmdk"}, "disk%20one.vmdk"),
        ("url%24encoded%a-1.vmdk", {"url$encoded%a-1.vmdk"}, "url$encoded%a-1.vmdk"),
        ("%C3%A9.vmdk", {"é.vmdk"}, "é.vmdk"),
        ("sun..vhw-disk1.vmdk", {"sun..vhw-disk1.vmdk"}, "sun..vhw-disk1.vmdk"),
        ("sub/data.vmdk", {"sub/data.vmdk"}, "sub/data.vmdk"),
    ],
)
def test_an_href_names_a_file(href: str, names: set[str], expected: str) -> None:
    assert resolve_href(href, names, "vm.ovf") == expected


def test_an_href_is_relative_to_the_descriptor_s_folder() -> None:
    assert resolve_href("a.vmdk", {"a.vmdk", "sub/a.vmdk"}, "sub/vm.ovf") == "sub/a.vmdk"
    assert resolve_href("a.vmdk", {"a.vmdk"}, "sub/vm.ovf") == "a.vmdk"


@pytest.mark.parametrize(
    "href",
    [
        "/etc/passwd",
        "../x.vmdk",
        "a/../../x.vmdk",
        "%2e%2e/x.vmdk",
        "%2Fetc%2Fpasswd",
        "http://host/x.vmdk",
        "HTTPS://host/x.vmdk",
        "file:///etc/passwd",
        "file:x.vmdk",
        "nbd:host:port",
        "C:\\x.vmdk",
        "c:x.vmdk",
        "a\\b.vmdk",
        "\\\\host\\share",
        "a%5cb.vmdk",
        "a\0b",
        "a%00b",
        "",
    ],
)
def test_an_href_that_leads_out_is_refused(href: str) -> None:
    class Everything:
        def __contains__(self, name: object) -> bool:
            raise AssertionError(f"{name!r} was looked for")

    with pytest.raises(UnsafeReference, match=r"vm\.ovf: the href"):
        resolve_href(href, Everything(), "vm.ovf")


def test_an_href_without_its_file_says_so() -> None:
    with pytest.raises(CorruptImage, match=r"refers to the file 'a\.vmdk', which is not in the appliance"):
        resolve_href("a.vmdk", {"b.vmdk"}, "vm.ovf")


def test_numbered_pieces_without_a_chunk_size_are_not_guessed_about() -> None:
    with pytest.raises(UnsupportedFeature, match=r"'a\.vmdk\.000000000' is, and no chunkSize says"):
        resolve_href("a.vmdk", {"a.vmdk.000000000"}, "vm.ovf")


@pytest.mark.parametrize("nasty", ["\x9b31m", "\u202egnp.vmdk", "a\nb", "x" * 5000])
def test_messages_show_no_control_characters(nasty: str) -> None:
    with pytest.raises(CorruptImage) as caught:
        resolve_href(nasty, set(), nasty)
    message = str(caught.value)
    assert len(message) < 700
    assert "\n" not in message
    assert not {"\x9b", "\u202e"} & set(message)
    data = envelope(f'<References><File ovf:id="{nasty}" ovf:href="x" ovf:size="{nasty}"/></References>')
    for finding in parse_descriptor(data, "vm.ovf").findings:
        assert not {"\x9b", "\u202e", "\n"} & set(finding.message)
        assert len(finding.message) < 300
