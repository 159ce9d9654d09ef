"""`diskfs explain`: from a message, as it comes, to the entry that is about it."""

import json

import jsonschema
import pytest

from diskfs.preflight.matching import find_entries
from diskfs.preflight.rules.catalogue import errors
from tests.cli.test_commands import schema
from tests.fuse.mounting import diskfs


@pytest.mark.parametrize("entry", errors(), ids=lambda entry: entry.id)
def test_every_wording_finds_its_entry(entry: object) -> None:
    from diskfs.preflight.rules.catalogue import ErrorEntry

    assert isinstance(entry, ErrorEntry)
    for message in entry.messages:
        for text in (
            message,
            message.upper(),
            message.rstrip(".") + ".",
            f'StatusMessage: "{message}" (task import-ami-0ab1)',
        ):
            assert entry.id in {found.entry.id for found in find_entries(text)}, text


@pytest.mark.parametrize(
    ("text", "best"),
    [
        ("ERROR: Bucket my-vms is not in the eu-west-1 Region, it's in us-east-1", "VMIE-ERR-11"),
        (
            ("Client.Unsupported: No bootable partition found. (Service: AmazonEC2; Status Code: 400; Error Code: "
            "Unsupported; Request ID: 7ca51be1-4f5a-4a5e-9d7f-1b4b6c4a2f00)"),
            "VMIE-ERR-08",
        ),
        ("clienterror: disk validation failed [unsupported vmdk file format]", "VMIE-ERR-04"),
        ("ClientError: GRUB doesn't exist: Multiple different grub/menu.lst files found", "VMIE-ERR-05"),
        (("Error starting instances: Invalid value i-0123456789abcdef0 for instanceId. Instance does not have a volume "
         "attached at root (/dev/sda1)."), "VMIE-ERR-18"),
        (("The service role <my-role> does not exist or does not have sufficient permissions for the service to "
         "continue"), "VMIE-ERR-06"),
        (("FirstBootFailure: This import request failed because the Windows instance failed to boot and establish "
         "network connectivity."), "VMIE-ERR-21"),
    ],
)  # fmt: skip
def test_messages_as_aws_sends_them(text: str, best: str) -> None:
    assert find_entries(text)[0].entry.id == best


@pytest.mark.parametrize(
    ("text", "best"),
    [
        ("disk validtion faild unsuported vmdk file formt", "VMIE-ERR-04"),
        ("Unsuported kernel verson 5.15.0-1", "VMIE-ERR-27"),
        ("ClientError: Footers not identicel", "VMIE-ERR-09"),
        ("ClientError: Mutliple diferent grub/menu.lst files fuond", "VMIE-ERR-05"),
        ("The service role vmimport does not exist", "VMIE-ERR-06"),
        ("BLSC-style GRUB found", "VMIE-ERR-23"),
        ("Unable to detect default kernel", "VMIE-ERR-23"),
        ("OVA with chunked disk files", "VMIE-ERR-03"),
        ("we were unable to read your imports initrd", "VMIE-ERR-24"),
        ("Client.UnsupportedOperation", "VMIE-ERR-16"),
        ("NotExportable", "VMIE-ERR-17"),
        ("FirstBootFailure", "VMIE-ERR-21"),
    ],
)
def test_typing_errors_and_parts_find_their_entry(text: str, best: str) -> None:
    assert best in {found.entry.id for found in find_entries(text)}


def test_one_text_of_two_operations_finds_both() -> None:
    found = {found.entry.id for found in find_entries("No bootable partition found")}
    assert found == {"VMIE-ERR-08", "VMIE-ERR-21g"}


@pytest.mark.parametrize(
    "text",
    ["", " ", "disk", "the file", "role", "kernel panic", "hello world", "not found", "import instance failed",
     "permission denied (publickey)", "Connection timed out", "no such file or directory",
     "the quick brown fox jumps over the lazy dog", "error", "the import failed", "x" * 100_000,
     "An error occurred (UnauthorizedOperation) when calling the DescribeInstances operation: not authorized"],
)  # fmt: skip
def test_other_texts_find_nothing(text: str) -> None:
    assert find_entries(text) == []


def test_the_command_prints_text_and_json() -> None:
    text = diskfs("explain", "ClientError: Unsupported kernel version").stdout
    assert text.startswith("VMIE-ERR-27 (Linux): ClientError: Unsupported kernel version\n")
    assert "VMIE-OS-03" in text
    document = json.loads(diskfs("explain", "--json", "Unsupported", "kernel", "version").stdout)
    jsonschema.validate(document, schema("explain"))
    assert document["entries"][0]["id"] == "VMIE-ERR-27"
    assert diskfs("explain", "nothing of the kind", expect=3).stdout == ""


def test_the_command_explains_a_rule() -> None:
    for arguments in (("explain", "vmie-fmt-04"), ("explain", "FMT-4"), ("preflight", "--explain", "VMIE-FMT-04")):
        text = diskfs(*arguments).stdout
        assert text.startswith("VMIE-FMT-04 (error; import-image, import-instance, import-snapshot; guest: any)\n")
        assert "ClientError: Disk validation failed [Unsupported VMDK File Format]" in text
    document = json.loads(diskfs("preflight", "--explain", "VMIE-FMT-01", "--json").stdout)
    jsonschema.validate(document, schema("explain"))
    assert document["decisions"][0].startswith("A-05")
    assert "there is no rule VMIE-FMT-99" in diskfs("explain", "VMIE-FMT-99", expect=2).stderr
