"""The formats that are fuzzed."""

from scripts.fuzzlib.formats import archives, partitions, qcow2, vdi, vhd, vhdx, vmdk
from scripts.fuzzlib.specimen import Format

FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        vmdk.SPARSE,
        vmdk.STREAM,
        vmdk.TEXT,
        vmdk.EXTENT,
        vhd.VHD,
        vhdx.VHDX,
        qcow2.QCOW2,
        vdi.VDI,
        archives.OVA,
        archives.GZIP,
        partitions.MBR,
        partitions.GPT,
    )
}
"""What `--format` takes."""
