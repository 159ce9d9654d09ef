"""What the user means to ask of the service: the parameters of the request that rules need.

The names are those of the EC2 API: ImportImage, ImportSnapshot, ImportInstance, ExportImage, CreateInstanceExportTask.
"""

import enum
from dataclasses import dataclass


class Operation(enum.Enum):
    """What the image is for; the values are those of `--for`."""

    IMPORT_IMAGE = "import-image"
    IMPORT_SNAPSHOT = "import-snapshot"
    IMPORT_INSTANCE = "import-instance"
    EXPORT_IMAGE = "export-image"
    EXPORT_INSTANCE = "export-instance"


OPERATIONS = tuple(operation.value for operation in Operation)


@dataclass(frozen=True, slots=True)
class Request:
    """The parameters as they were given; None for one that was not."""

    operation: Operation = Operation.IMPORT_IMAGE
    region: str | None = None
    license_type: str | None = None
    usage_operation: str | None = None
    boot_mode: str | None = None
    platform: str | None = None
    instance_type: str | None = None
    disk_format: str | None = None
    """Of an export: OVA, VHD, VMDK, RAW."""
    s3_prefix: str | None = None
    """What the key of an export begins with."""
    encrypted: bool = False
    from_snapshot: bool = False
    """The disk will be given as an EBS snapshot (DiskContainer.SnapshotId)."""

    @property
    def is_import(self) -> bool:
        """Whether a guest comes in, rather than going out."""
        return self.operation.value.startswith("import-")
