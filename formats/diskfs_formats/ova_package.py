"""Where the files of an appliance are: in a tar archive, or in a folder beside the descriptor."""

import threading
from collections.abc import Iterable
from typing import Protocol

from diskfs_formats.driver import RelatedFiles
from diskfs_formats.errors import ParentUnavailable
from diskfs_formats.source import ByteSource, SourceSlice


class Package(Protocol):
    """The files of an appliance by name. What `source` returns does not close the file when it is closed."""

    @property
    def name(self) -> str: ...

    def known_names(self) -> Iterable[str]: ...

    def __contains__(self, name: object, /) -> bool: ...

    def source(self, name: str, /) -> ByteSource: ...

    def close(self) -> None: ...


class Archive:
    """The members of a tar archive."""

    def __init__(self, source: ByteSource, members: dict[str, SourceSlice]) -> None:
        self.name = source.name
        self._source = source
        self._members = members

    def known_names(self) -> tuple[str, ...]:
        return tuple(self._members)

    def __contains__(self, name: object, /) -> bool:
        return name in self._members

    def source(self, name: str, /) -> ByteSource:
        return self._members[name]

    def close(self) -> None:
        self._source.close()


class Folder:
    """The files beside a descriptor, each opened once, when it is first asked for."""

    def __init__(self, descriptor: ByteSource, descriptor_name: str, related: RelatedFiles) -> None:
        self.name = descriptor.name
        self._descriptor = descriptor
        self._descriptor_name = descriptor_name
        self._related = related
        self._opened: dict[str, ByteSource] = {}
        self._lock = threading.Lock()

    def known_names(self) -> tuple[str, ...]:
        with self._lock:
            return (self._descriptor_name, *self._opened)

    def __contains__(self, name: object, /) -> bool:
        """Tell whether the file is there; raises UnsafeReference for a name that is not a bare one."""
        if name == self._descriptor_name:
            return True
        try:
            self._file(str(name))
        except ParentUnavailable:
            return False
        return True

    def source(self, name: str, /) -> ByteSource:
        whole = self._descriptor if name == self._descriptor_name else self._file(name)
        return SourceSlice(whole, 0, whole.size, whole.name)

    def _file(self, name: str) -> ByteSource:
        with self._lock:
            found = self._opened.get(name)
            if found is None:
                found = self._opened[name] = self._related.open(name)
            return found

    def close_related(self) -> None:
        with self._lock:
            for source in self._opened.values():
                source.close()

    def close(self) -> None:
        self.close_related()
        self._descriptor.close()
