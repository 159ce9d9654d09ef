"""Rules about the request alone: its parameters, and where the image lies."""

import functools
import re
from collections.abc import Iterator
from typing import Any

from diskfs.preflight.facts import Facts
from diskfs.preflight.request import Operation
from diskfs.preflight.rules.catalogue import load
from diskfs.preflight.rules.outcome import Outcome, failed, not_checked, passed, unknown
from diskfs.preflight.rules.registry import check

BOOT_MODES = ("legacy-bios", "uefi")
PLATFORMS = ("Linux", "Windows")
USAGE_OPERATIONS = (
    "RunInstances", "RunInstances:0002", "RunInstances:0004", "RunInstances:0006", "RunInstances:0100",
    "RunInstances:0102", "RunInstances:0200", "RunInstances:0202", "RunInstances:0800",
)  # fmt: skip
LATER_USAGE_OPERATIONS = ("RunInstances:0010", "RunInstances:000g")
"""Red Hat Enterprise Linux and SUSE Linux: only a later edition of the guide lists them."""
LINUX_INSTANCE_TYPES = frozenset(
    {
        "t2.micro", "t2.small", "t2.medium", "m3.medium", "m3.large", "m3.xlarge", "m3.2xlarge",
        "c3.large", "c3.xlarge", "c3.2xlarge", "c3.4xlarge", "c3.8xlarge", "cc1.4xlarge", "cc2.8xlarge",
        "r3.large", "r3.xlarge", "r3.2xlarge", "r3.4xlarge", "r3.8xlarge", "cr1.8xlarge",
        "i2.xlarge", "i2.2xlarge", "i2.4xlarge", "i2.8xlarge", "hi1.4xlarge", "hi1.8xlarge",
    }
)  # fmt: skip
assert len(LINUX_INSTANCE_TYPES) == 26
EXPORT_FORMATS = {
    Operation.EXPORT_INSTANCE: ("OVA", "VHD", "VMDK"),
    Operation.EXPORT_IMAGE: ("VHD", "VMDK", "RAW"),
}
_BUCKET = re.compile(r"(?!\d+\.\d+\.\d+\.\d+$)(?!xn--)[a-z0-9](?!.*\.\.)[a-z0-9.-]{1,61}[a-z0-9]")


@functools.cache
def regions() -> dict[str, Any]:
    """Return `data/regions.toml`."""
    return load("regions.toml")


@check("VMIE-BOOT-01")
def boot_mode_is_known(facts: Facts) -> Iterator[Outcome]:
    """--boot-mode, if it is given, is legacy-bios or uefi."""
    mode = facts.request.boot_mode
    if mode is None:
        yield passed("--boot-mode is optional, and is not given")
    elif mode not in BOOT_MODES:
        yield failed(f"--boot-mode {mode}", f"give {' or '.join(BOOT_MODES)}")


@check("VMIE-BOOT-12")
def boot_mode_of_region(facts: Facts) -> Iterator[Outcome]:
    """--region is in the commercial partition."""
    region = facts.request.region
    if region is None:
        yield not_checked("it depends on the Region: give --region")
    elif region.startswith(tuple(regions()["other_partitions"])):
        yield unknown(f"{region} is no commercial Region; the guide speaks of those alone")
    else:
        yield passed(region)


@check("VMIE-INST-03")
def linux_instance_type(facts: Facts) -> Iterator[Outcome]:
    """--instance-type is one of the 26 types that Linux can be imported into."""
    kind = facts.request.instance_type
    if kind is None:
        yield not_checked("it depends on the instance type: give --instance-type")
    elif kind not in LINUX_INSTANCE_TYPES:
        yield failed(f"--instance-type {kind}")
    else:
        yield passed(kind)


@check("VMIE-INST-05")
def region_has_import_instance(facts: Facts) -> Iterator[Outcome]:
    """--region is one of the 15 with ImportInstance."""
    region = facts.request.region
    if region is None:
        yield not_checked("it depends on the Region: give --region")
    elif region not in regions()["import_instance"]:
        yield failed(f"--region {region}", "use import-image")
    else:
        yield passed(region)


@check("VMIE-LIC-01")
def one_license_parameter(facts: Facts) -> Iterator[Outcome]:
    """--license-type and --usage-operation are not both given."""
    if facts.request.license_type is not None and facts.request.usage_operation is not None:
        yield failed(
            f"--license-type {facts.request.license_type} and --usage-operation {facts.request.usage_operation}"
        )


@check("VMIE-LIC-02")
def some_license_parameter(facts: Facts) -> Iterator[Outcome]:
    """--license-type or --usage-operation is given."""
    if facts.request.license_type is None and facts.request.usage_operation is None:
        yield failed("neither --license-type nor --usage-operation is given")


@check("VMIE-LIC-15")
def usage_operation_is_known(facts: Facts) -> Iterator[Outcome]:
    """--usage-operation, if it is given, is one of the nine listed values."""
    given = facts.request.usage_operation
    if given is None:
        yield passed("--usage-operation is not given")
    elif given in LATER_USAGE_OPERATIONS:
        yield unknown(f"--usage-operation {given} is in a later edition of the guide only")
    elif given not in USAGE_OPERATIONS:
        yield failed(f"--usage-operation {given}", f"give one of {', '.join(USAGE_OPERATIONS)}")


@check("VMIE-S3-03")
def s3_location_is_written_rightly(facts: Facts) -> Iterator[Outcome]:
    """The source is an s3:// URL whose bucket is named by S3's rules and whose key is not empty."""
    if not facts.location.startswith("s3://"):
        yield not_checked("the source is not in S3 yet")
        return
    bucket, _, key = facts.location.removeprefix("s3://").partition("?versionId=")[0].partition("/")
    if not _BUCKET.fullmatch(bucket):
        yield failed(f"{bucket!r} is no name of a bucket")
    if not key:
        yield failed(f"{facts.location} has no key")


@check("VMIE-S3-04")
def url_can_be_read(facts: Facts) -> Iterator[Outcome]:
    """The source is an s3:// URL, or an https:// URL that is presigned."""
    if facts.location.startswith("s3://"):
        yield passed("bucket and key")
    elif not facts.location.startswith(("https://", "http://")):
        yield not_checked("the source is not in S3 yet")
    elif facts.is_presigned:
        yield passed("the URL is presigned")
    else:
        yield unknown("the URL has no signature; it must be that of a public object")


@check("VMIE-SEC-01")
def asks_for_encryption(facts: Facts) -> Iterator[Outcome]:
    """--encrypted is given."""
    if facts.request.encrypted:
        yield passed("--encrypted")
    else:
        yield not_checked("it depends on what you want: give --encrypted")


@check("VMIE-EXP-01", "VMIE-EXP-02")
def export_format_is_known(facts: Facts) -> Iterator[Outcome]:
    """--disk-format is one that the export writes."""
    given = facts.request.disk_format
    taken = EXPORT_FORMATS[facts.request.operation]
    if given is None:
        yield not_checked("it depends on the format: give --disk-format")
    elif given.upper() not in taken:
        yield failed(f"--disk-format {given}", f"give one of {', '.join(taken)}")
    else:
        yield passed(given)


@check("VMIE-EXP-19", "VMIE-EXP-20")
def prefix_ends_with_slash(facts: Facts) -> Iterator[Outcome]:
    """--s3-prefix, if it is given, ends with a slash."""
    given = facts.request.s3_prefix
    if given is None:
        yield not_checked("it depends on the prefix: give --s3-prefix")
    elif given and not given.endswith("/"):
        yield failed(f"--s3-prefix {given} makes keys that begin {given}export-", f"give {given}/")
    else:
        yield passed(given)
