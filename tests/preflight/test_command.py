"""`diskfs preflight` as scripts use it: the document, the exit codes, the same answer twice."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from diskfs.preflight.opening import open_facts
from diskfs.preflight.report import make_report
from diskfs.preflight.request import Operation, Request
from diskfs.preflight.rules.catalogue import rules
from tests.cli.test_commands import schema
from tests.fuse.mounting import diskfs
from tests.helpers import corpus_rows
from tests.preflight.checking import MIB, appliance, disk, qemu_image
from tests.preflight.test_partitions import GPT, linux_tree, with_filesystems

OPERATIONS = ("import-image", "import-snapshot", "import-instance", "export-image", "export-instance")
HOSTILE = [row.path for row in corpus_rows() if row.hostile and not row.is_member][::7]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_document_follows_its_schema_for_every_operation(tmp_path: Path, operation: str) -> None:
    disks = [qemu_image(tmp_path / "one.vmdk", "vmdk"), qemu_image(tmp_path / "b", "qcow2")]
    document = report_of(appliance(tmp_path / "vm.ova", disks), Operation(operation))
    jsonschema.validate(document, schema("preflight"))
    assert document["operation"] == operation
    found = {entry["id"] for entry in document["rules"] + document["not_applicable"]}
    assert found == {rule.id for rule in rules().values() if operation in rule.operations}
    refused = any(entry["status"] == "fail" and entry["severity"] == "error" for entry in document["rules"])
    assert document["verdict"] == ("refused" if refused else "accepted")


def report_of(path: Path, operation: Operation = Operation.IMPORT_IMAGE) -> dict[str, Any]:
    with open_facts(str(path), Request(operation)) as facts:
        document: dict[str, Any] = json.loads(json.dumps(make_report(facts)))
    return document


def test_two_reports_are_the_same_bytes(tmp_path: Path) -> None:
    image = with_filesystems(tmp_path / "disk.raw", GPT, "ext4", "swap", tree=linux_tree(tmp_path))
    one, two = (
        diskfs("preflight", image, "--json", "--html", tmp_path / f"{name}.html", expect=3).stdout for name in "ab"
    )
    assert one == two
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    document = json.loads(one)
    assert (document["facts"]["os"], document["facts"]["os_version"]) == ("Debian GNU/Linux 12", "12.4")
    assert [volume["filesystem"] for volume in document["disks"][0]["volumes"]] == ["ext4", "swap"]
    uuid = document["changes"]
    assert any("/dev/sda1 becomes UUID=" in change["what"] for change in uuid)


def test_the_text_is_grouped_and_says_what_to_do(tmp_path: Path) -> None:
    path = qemu_image(tmp_path / "disk.vmdk", "vmdk")
    text = diskfs("preflight", path, expect=3).stdout
    assert text.startswith(f"{path}: import-image: refused\n")
    errors, warnings = text.index("Errors: the service would refuse the image"), text.index("Warnings")
    assert errors < text.index("VMIE-FMT-04") < warnings < text.index("VMIE-LIC-02")
    assert "VM Import says: ClientError: Disk validation failed [Unsupported VMDK File Format]" in text
    assert f"Remedy: diskfs convert {path} disk.vmdk -O vmdk --variant streamOptimized" in text
    assert "aws ec2 import-image" in text
    assert "VMIE-S3-01" not in text
    quiet = diskfs("preflight", path, "--quiet", "--all", expect=3).stdout
    assert "VMIE-S3-01" in quiet
    assert "VMIE-FMT-04" in quiet
    assert "VMIE-LIC-02" not in quiet


def test_the_command_to_import_names_what_was_given(tmp_path: Path) -> None:
    path = disk(tmp_path / "disk.raw", "label: dos\n,,L\n", 4 * MIB)
    options = ["--region", "eu-west-1", "--license-type", "BYOL", "--boot-mode", "uefi", "--encrypted"]
    document = json.loads(diskfs("preflight", path, "--json", *options, expect=3).stdout)
    assert document["command"] == (
        "aws ec2 import-image --region eu-west-1 --encrypted --license-type BYOL --boot-mode uefi --disk-containers "
        "'Format=RAW,UserBucket={S3Bucket=<bucket>,S3Key=<key>}'"
    )
    assert document["request"]["region"] == "eu-west-1"
    snapshot = report_of(path, Operation.IMPORT_SNAPSHOT)
    assert snapshot["command"].startswith("aws ec2 import-snapshot --disk-container 'Format=RAW,")


def test_what_cannot_be_read_is_a_failure_and_what_cannot_be_understood_an_answer(tmp_path: Path) -> None:
    assert "no-such.vmdk" in diskfs("preflight", tmp_path / "no-such.vmdk", expect=1).stderr
    assert diskfs("preflight", expect=2).stderr
    (tmp_path / "damaged.vmdk").write_bytes(b"KDMV" + bytes(1000))
    document = report_of(tmp_path / "damaged.vmdk")
    assert document["verdict"] == "refused"
    jsonschema.validate(document, schema("preflight"))
    assert document["disks"][0]["error"]
    (tmp_path / "empty.raw").touch()
    assert "VMIE-FMT-01" in diskfs("preflight", tmp_path / "empty.raw", expect=3).stdout


@pytest.mark.parametrize("path", HOSTILE)
def test_hostile_images_get_an_answer(path: str, corpus: Path) -> None:
    """A sample of the corpus: the document is there whatever the image is."""
    jsonschema.validate(report_of(corpus / path), schema("preflight"))
