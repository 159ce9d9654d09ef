"""Rules about the request: each parameter inside and outside of what the service takes."""

from pathlib import Path
from typing import Any

import pytest

from diskfs.preflight.facts import Facts
from diskfs.preflight.request import Operation, Request
from diskfs.preflight.rules.catalogue import rules
from diskfs.preflight.rules.engine import run_rule
from diskfs_formats.source import MemorySource
from tests.preflight.checking import MIB, result_of

IMAGE, SNAPSHOT, INSTANCE = "import-image", "import-snapshot", "import-instance"
CASES: list[tuple[str, str, dict[str, Any], str]] = [
    ("VMIE-BOOT-01", IMAGE, {}, "pass"),
    ("VMIE-BOOT-01", IMAGE, {"boot_mode": "legacy-bios"}, "pass"),
    ("VMIE-BOOT-01", IMAGE, {"boot_mode": "uefi"}, "pass"),
    ("VMIE-BOOT-01", IMAGE, {"boot_mode": "uefi-preferred"}, "fail"),
    ("VMIE-BOOT-12", IMAGE, {}, "not-checked"),
    ("VMIE-BOOT-12", IMAGE, {"region": "eu-west-1"}, "pass"),
    ("VMIE-BOOT-12", IMAGE, {"region": "cn-north-1"}, "unknown"),
    ("VMIE-INST-05", INSTANCE, {}, "not-checked"),
    ("VMIE-INST-05", INSTANCE, {"region": "eu-west-1"}, "pass"),
    ("VMIE-INST-05", INSTANCE, {"region": "eu-north-1"}, "fail"),
    ("VMIE-LIC-01", IMAGE, {"license_type": "BYOL"}, "pass"),
    ("VMIE-LIC-01", IMAGE, {"usage_operation": "RunInstances"}, "pass"),
    ("VMIE-LIC-01", IMAGE, {"license_type": "BYOL", "usage_operation": "RunInstances"}, "fail"),
    ("VMIE-LIC-02", IMAGE, {}, "fail"),
    ("VMIE-LIC-02", IMAGE, {"license_type": "BYOL"}, "pass"),
    ("VMIE-LIC-02", IMAGE, {"usage_operation": "RunInstances"}, "pass"),
    ("VMIE-LIC-15", IMAGE, {}, "pass"),
    ("VMIE-LIC-15", IMAGE, {"usage_operation": "RunInstances:0202"}, "pass"),
    ("VMIE-LIC-15", IMAGE, {"usage_operation": "RunInstances:0010"}, "unknown"),
    ("VMIE-LIC-15", IMAGE, {"usage_operation": "RunInstances:9999"}, "fail"),
    ("VMIE-SEC-01", IMAGE, {}, "not-checked"),
    ("VMIE-SEC-01", SNAPSHOT, {"encrypted": True}, "pass"),
    ("VMIE-GEN-04", IMAGE, {}, "not-applicable"),
    ("VMIE-GEN-04", IMAGE, {"platform": "Linux"}, "pass"),
    ("VMIE-GEN-04", IMAGE, {"platform": "linux"}, "fail"),
    ("VMIE-EXP-01", "export-instance", {}, "not-checked"),
    ("VMIE-EXP-01", "export-instance", {"disk_format": "ova"}, "pass"),
    ("VMIE-EXP-01", "export-instance", {"disk_format": "RAW"}, "fail"),
    ("VMIE-EXP-02", "export-image", {"disk_format": "RAW"}, "pass"),
    ("VMIE-EXP-02", "export-image", {"disk_format": "OVA"}, "fail"),
    ("VMIE-EXP-19", "export-instance", {"s3_prefix": "vms/"}, "pass"),
    ("VMIE-EXP-19", "export-instance", {"s3_prefix": "vms"}, "fail"),
    ("VMIE-EXP-20", "export-image", {"s3_prefix": ""}, "pass"),
    ("VMIE-EXP-20", "export-image", {"s3_prefix": "vms"}, "fail"),
    ("VMIE-EXP-20", "export-image", {}, "not-checked"),
    ("VMIE-LIC-03", IMAGE, {}, "pass"),
    ("VMIE-LIC-03", IMAGE, {"license_type": "byol"}, "fail"),
    ("VMIE-LIC-03", IMAGE, {"license_type": "BYOL"}, "not-applicable"),
    ("VMIE-INST-03", INSTANCE, {"instance_type": "t2.micro"}, "not-applicable"),
]  # fmt: skip


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk without anything on it."""
    path = tmp_path_factory.mktemp("blank") / "disk.raw"
    path.write_bytes(bytes(MIB))
    return path


@pytest.mark.parametrize(("rule", "operation", "parameters", "status"), CASES)
def test_parameters(blank: Path, rule: str, operation: str, parameters: dict[str, Any], status: str) -> None:
    assert result_of(blank, rule, operation, **parameters).status.value == status


@pytest.mark.parametrize(
    ("rule", "operation", "location", "status"),
    [
        ("VMIE-S3-03", INSTANCE, "disk.vmdk", "not-checked"), ("VMIE-S3-03", INSTANCE, "s3://vms/disk.vmdk", "pass"),
        ("VMIE-S3-03", INSTANCE, "s3://vms/disk.vmdk?versionId=3", "pass"),
        ("VMIE-S3-03", INSTANCE, "s3://vms/", "fail"),
        ("VMIE-S3-03", INSTANCE, "s3://My_VMs/disk.vmdk", "fail"), ("VMIE-S3-03", INSTANCE, "s3://10.0.0.1/k", "fail"),
        ("VMIE-S3-03", INSTANCE, "s3://ab/k", "fail"), ("VMIE-S3-03", INSTANCE, "s3://a..b/k", "fail"),
        ("VMIE-S3-04", IMAGE, "disk.vmdk", "not-checked"), ("VMIE-S3-04", SNAPSHOT, "s3://vms/disk.vmdk", "pass"),
        ("VMIE-S3-04", IMAGE, "https://vms.s3.amazonaws.com/disk.vmdk", "unknown"),
        ("VMIE-S3-04", IMAGE, "https://vms.s3.amazonaws.com/d?X-Amz-Credential=a&X-Amz-Signature=0f", "pass"),
    ],
)  # fmt: skip
def test_locations(rule: str, operation: str, location: str, status: str) -> None:
    request = Request(operation=Operation(operation))
    facts = Facts(request, location, None, stored=MemorySource(b"x"))
    assert run_rule(rules()[rule], facts).status.value == status
    assert "Signature" not in facts.location


@pytest.mark.parametrize(
    ("rule", "operation"), [("VMIE-INST-04", INSTANCE), ("VMIE-IAM-05", IMAGE), ("VMIE-S3-01", IMAGE)]
)
def test_what_needs_others_is_not_checked(blank: Path, rule: str, operation: str) -> None:
    assert result_of(blank, rule, operation).status.value == "not-checked"
