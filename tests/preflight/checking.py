"""Running one rule over an image that another program made."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diskfs.guest.files import Volume
from diskfs.preflight.opening import open_facts
from diskfs.preflight.request import Operation, Request
from diskfs.preflight.rules.catalogue import rules
from diskfs.preflight.rules.engine import Result, run_rule

MIB = 1 << 20


def result_of(
    location: Path | str,
    rule_id: str,
    operation: str = "import-image",
    *,
    deep: bool = False,
    volumes: Sequence[Volume] | None = None,
    **parameters: Any,
) -> Result:
    """Run a rule over an image; `volumes` are taken in the place of those on its disks."""
    request = Request(operation=Operation(operation), **parameters)
    rule = rules()[rule_id]
    assert operation in rule.operations
    with open_facts(str(location), request, deep=deep) as facts:
        if volumes is not None:
            facts.__dict__["volumes"] = tuple(volumes)
        return run_rule(rule, facts)


def status_of(location: Path | str, rule_id: str, operation: str = "import-image", **options: Any) -> str:
    """Return how a rule fared."""
    return result_of(location, rule_id, operation, **options).status.value


def run(*command: object, stdin: str | None = None) -> str:
    """Run a system tool and return what it printed."""
    result = subprocess.run([str(word) for word in command], input=stdin, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}: exit {result.returncode}: {result.stderr}{result.stdout}"
    return result.stdout


def qemu_image(path: Path, image_format: str, size: int | str = MIB * 4, **options: str) -> Path:
    """Make an empty image with qemu-img."""
    settings = ["-o", ",".join(f"{key}={value}" for key, value in options.items())] if options else []
    run("qemu-img", "create", "-q", "-f", image_format, *settings, path, size)
    return path


def disk(path: Path, script: str, size: int = 64 * MIB) -> Path:
    """Make a raw disk that sfdisk partitions."""
    with path.open("wb") as file:
        file.truncate(size)
    run("sfdisk", "--quiet", "--no-reread", path, stdin=script)
    return path


OVF = """<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
<References>{files}</References>
<DiskSection><Info>disks</Info>{disks}</DiskSection>
<VirtualSystem ovf:id="vm"><Info>vm</Info><VirtualHardwareSection><Info>hardware</Info>
<Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>6</rasd:ResourceType></Item>
{items}{extra}</VirtualHardwareSection></VirtualSystem></Envelope>
"""


def item(number: int, resource_type: int, **texts: str) -> str:
    """Return a hardware item; the names of `texts` are those of CIM's schema."""
    inner = "".join(f"<rasd:{name}>{text}</rasd:{name}>" for name, text in texts.items())
    return (
        f"<Item><rasd:InstanceID>{number}</rasd:InstanceID>"
        f"<rasd:ResourceType>{resource_type}</rasd:ResourceType>{inner}</Item>"
    )


def appliance(path: Path, disks: Sequence[Path], extra: str = "", *, chunk_size: int | None = None) -> Path:
    """Pack disks, which must lie in the folder of `path`, with a descriptor by tar; `extra` is more hardware."""
    chunks = f' ovf:chunkSize="{chunk_size}"' if chunk_size is not None else ""
    descriptor = OVF.format(
        files="".join(f'<File ovf:id="f{n}" ovf:href="{one.name}"{chunks}/>' for n, one in enumerate(disks)),
        disks="".join(
            f'<Disk ovf:diskId="d{n}" ovf:fileRef="f{n}" ovf:capacity="4194304" '
            'ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>'
            for n in range(len(disks))
        ),
        items="".join(
            item(10 + n, 17, HostResource=f"ovf:/disk/d{n}", Parent="1", AddressOnParent=str(n))
            for n in range(len(disks))
        ),
        extra=extra,
    )
    ovf = path.with_suffix(".ovf")
    ovf.write_text(descriptor)
    if path.suffix == ".ova":
        names = [one.name for one in disks]
        if chunk_size is not None:
            names = [f"{name}.000000000" for name in names]
            for one in disks:
                one.rename(one.with_name(f"{one.name}.000000000"))
        run("tar", "--format=ustar", "-C", path.parent, "-cf", path, ovf.name, *names)
        ovf.unlink()
    return path
