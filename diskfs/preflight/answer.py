"""The answer in short: which system it is, how it will boot, which license it gets, what the service will change."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from diskfs.preflight.boot_mode import BootMode, predict
from diskfs.preflight.changes import Change, linux_changes, windows_changes
from diskfs.preflight.facts import Facts
from diskfs.preflight.request import Operation
from diskfs.preflight.rules.licensing import allowed_licenses
from diskfs_formats.errors import DiskfsError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What can be predicted. None for what is not known."""

    os: str | None
    os_version: str | None
    kernel: str | None
    architecture: str | None
    boot_mode: str | None
    boot_mode_reason: str
    license_type: str | None
    ena_support: bool | None
    changes: tuple[Change, ...]
    command: str


def answer(facts: Facts) -> Answer:
    """Predict; raises nothing for what cannot be known."""
    mode = _or(lambda: predict(facts), BootMode(None, ""))
    license_type = facts.request.license_type
    if license_type is None and facts.request.usage_operation is None:
        license_type = _or(lambda: next(iter(allowed_licenses(facts)), None), None)
    return Answer(
        os=_or(lambda: _system(facts), None),
        os_version=_or(lambda: _version(facts), None),
        kernel=_or(lambda: _kernel(facts), None),
        architecture=_or(lambda: _architecture(facts), None),
        boot_mode=mode.mode,
        boot_mode_reason=mode.reason,
        license_type=license_type,
        ena_support=_or(lambda: _ena_support(facts), None),
        changes=_changes(facts, mode),
        command=suggested_command(facts, license_type),
    )


def _or(fact: Callable[[], T], otherwise: T) -> T:
    try:
        return fact()
    except DiskfsError:
        return otherwise


def _system(facts: Facts) -> str | None:
    if "linux" in facts.guests and facts.linux is not None:
        release = facts.linux.release
        if release is None:
            return "Linux"
        is_told = release.version.partition(".")[0] in release.name.split()
        return release.name if is_told else f"{release.name} {release.version}".strip()
    if "windows" in facts.guests and facts.windows is not None:
        return str(facts.windows.version)
    return None


def _version(facts: Facts) -> str | None:
    """Return the release as the service's table of systems counts, with the point release where it is known."""
    if "linux" in facts.guests and facts.linux is not None:
        release = facts.linux.release
        return release.version or None if release is not None else None
    if "windows" in facts.guests and facts.windows is not None:
        return f"{facts.windows.version.nt}.{facts.windows.version.build}"
    return None


def _kernel(facts: Facts) -> str | None:
    kernel = facts.linux.default_kernel if facts.linux is not None else None
    return None if kernel is None else kernel.release


def _architecture(facts: Facts) -> str | None:
    if "linux" in facts.guests and facts.linux is not None:
        program = facts.linux.program
        return None if program is None else program.header.machine
    if "windows" in facts.guests and facts.windows is not None:
        return facts.windows.version.machine[0] or None
    return None


def _ena_support(facts: Facts) -> bool | None:
    if facts.linux is None:
        return None
    return any(facts.linux.has_driver(module) is not None for module in ("ena", "nvme"))


def _changes(facts: Facts, mode: BootMode) -> tuple[Change, ...]:
    if facts.request.operation is not Operation.IMPORT_IMAGE:
        return ()
    changes: list[Change] = []
    try:
        if "linux" in facts.guests and facts.linux is not None:
            changes.extend(linux_changes(facts.linux))
        if "windows" in facts.guests and facts.windows is not None:
            changes.extend(windows_changes(facts.windows))
    except DiskfsError as error:
        changes.append(Change("system", f"what else is changed is not known: {error}"))
    if mode.converts_gpt:
        changes.append(Change("partition table", "the boot volume's GPT is converted to an MBR"))
    return tuple(changes)


def suggested_command(facts: Facts, license_type: str | None) -> str:
    """Return the command of the AWS command line that makes the request; what is not known stands in <...>."""
    request = facts.request
    if request.operation not in {Operation.IMPORT_IMAGE, Operation.IMPORT_SNAPSHOT}:
        return ""
    options = _request_options(facts, license_type)
    container = _container(facts)
    name = "--disk-containers" if request.operation is Operation.IMPORT_IMAGE else "--disk-container"
    return shlex.join(["aws", "ec2", request.operation.value, *options, name, container])


def _request_options(facts: Facts, license_type: str | None) -> list[str]:
    request = facts.request
    options = ["--region", request.region] if request.region else []
    if request.encrypted:
        options.append("--encrypted")
    if request.operation is Operation.IMPORT_SNAPSHOT:
        return options
    if request.usage_operation is not None:
        options += ["--usage-operation", request.usage_operation]
    elif license_type is not None:
        options += ["--license-type", license_type]
    if request.boot_mode is not None:
        options += ["--boot-mode", request.boot_mode]
    if request.platform is not None:
        options += ["--platform", request.platform]
    return options


def _container(facts: Facts) -> str:
    """Return the DiskContainer; a file that has to be converted first is taken as the VMDK that comes out of it."""
    if facts.request.from_snapshot:
        return "SnapshotId=<snapshot>"
    if facts.container is not None and facts.request.operation is Operation.IMPORT_IMAGE:
        kind, is_ready = "OVA", facts.container == "ova"
    else:
        kind, is_ready = _format(facts)
    bucket, key = "<bucket>", "<key>"
    if facts.location.startswith("s3://") and is_ready:
        bucket, _, key = facts.location.removeprefix("s3://").partition("?versionId=")[0].partition("/")
    return f"Format={kind},UserBucket={{S3Bucket={bucket},S3Key={key}}}"


def _format(facts: Facts) -> tuple[str, bool]:
    kind = _or(lambda: facts.files[0].format, "")
    if kind in {"raw", "vhd", "vhdx"} and facts.container is None:
        return kind.upper(), True
    opened = facts.files[0].disk.opened if facts.files and facts.files[0].disk is not None else None
    return "VMDK", opened is not None and opened.info.variant == "streamOptimized" and facts.container is None
