"""A guest's folders as its own processes see them: one tree over several file systems.

Links are followed as the guest's kernel would, across mounts, and never out of the tree. What is asked twice is
looked up once. Not for several threads.
"""

from collections.abc import Iterator, Mapping

from diskfs.guest.errors import GuestError, LinkError
from diskfs.guest.files import MAX_LINKS, FileKind, GuestEntry, GuestFiles, split_path
from diskfs.preflight.linux.text import MAX_TEXT, SMALL_TEXT, decode
from diskfs_formats.source import ByteSource

MAX_WALKED = 5_000
"""Files that one walk through a folder yields."""
MAX_DEPTH = 12
MAX_KEPT = 500
"""Texts that are kept."""


class Prefixed:
    """A folder of a file system as the root of the tree: where a Btrfs subvolume holds the system."""

    def __init__(self, files: GuestFiles, prefix: str) -> None:
        self.files = files
        self.prefix = prefix.rstrip("/")


class GuestTree:
    """The tree of file systems mounted at their places; `/` must be among them."""

    def __init__(self, mounts: Mapping[str, Prefixed]) -> None:
        self._mounts = {tuple(split_path(path)): place for path, place in mounts.items()}
        self._known: dict[tuple[str, ...], GuestEntry | None] = {(): GuestEntry("", FileKind.FOLDER, 0, 0o755)}
        self._texts: dict[str, str | None] = {}

    @property
    def root(self) -> GuestFiles:
        """The file system at /."""
        return self._mounts[()].files

    def mounted(self, path: str) -> GuestFiles | None:
        """Return the file system mounted at exactly this place."""
        place = self._mounts.get(tuple(split_path(path)))
        return place.files if place else None

    def resolve(self, path: str, *, follow: bool = True) -> str | None:
        """Return the path without links, or None if there is nothing; GuestError for links in a circle."""
        found = self._walk(path, follow)
        return None if found is None else "/" + "/".join(found)

    def entry(self, path: str, *, follow: bool = True) -> GuestEntry | None:
        """Describe what is at a path; None if there is nothing."""
        found = self._walk(path, follow)
        return None if found is None else self._known[found]

    def exists(self, path: str) -> bool:
        return self.entry(path) is not None

    def is_file(self, path: str) -> bool:
        found = self.entry(path)
        return found is not None and found.kind is FileKind.FILE

    def is_folder(self, path: str) -> bool:
        found = self.entry(path)
        return found is not None and found.kind is FileKind.FOLDER

    def is_masked(self, path: str) -> bool:
        """Tell whether a path is a link to /dev/null, or an empty file: how systemd and udev switch a file off."""
        found = self.entry(path, follow=False)
        if found is None:
            return False
        if found.kind is FileKind.LINK:
            return found.target == "/dev/null"
        return found.kind is FileKind.FILE and found.size == 0

    def entries(self, path: str) -> tuple[GuestEntry, ...]:
        """List a folder by name; nothing if there is no such folder."""
        found = self._walk(path, True)
        if found is None or self._known[found] is None or self._known[found].kind is not FileKind.FOLDER:  # type: ignore[union-attr]  # just seen
            return ()
        files, inner = self._owner(found)
        return tuple(sorted(files.entries(inner), key=lambda entry: entry.name))

    def names(self, path: str, suffix: str = "") -> list[str]:
        """Return the paths of a folder's entries whose names end so."""
        folder = path.rstrip("/")
        return [f"{folder}/{entry.name}" for entry in self.entries(path) if entry.name.endswith(suffix)]

    def walk(self, path: str) -> Iterator[str]:
        """Yield the files below a folder, links not followed; ends after MAX_WALKED files."""
        todo = [(path.rstrip("/"), 0)]
        count = 0
        while todo:
            folder, depth = todo.pop()
            for entry in self.entries(folder or "/"):
                inner = f"{folder}/{entry.name}"
                count += 1
                if count > MAX_WALKED:
                    return
                if entry.kind is FileKind.FOLDER and depth < MAX_DEPTH:
                    todo.append((inner, depth + 1))
                elif entry.kind is FileKind.FILE:
                    yield inner

    def open(self, path: str) -> ByteSource:
        """Open a file to read parts of it; GuestError if there is none."""
        files, inner = self._require(path)
        return files.open(inner)

    def read(self, path: str, limit: int) -> bytes:
        """Return a file's first `limit` bytes; GuestError if there is none."""
        source = self.open(path)
        return source.read_at(0, min(limit, source.size))

    def text(self, path: str, limit: int = MAX_TEXT) -> str | None:
        """Return a file's text, cut at `limit` bytes; None if there is no such file. GuestError if it is damaged."""
        if path in self._texts:
            return self._texts[path]
        text = decode(self.read(path, limit)) if self.is_file(path) else None
        # What is asked for again and again is small.
        if text is None or (len(text) <= SMALL_TEXT and len(self._texts) < MAX_KEPT):
            self._texts[path] = text
        return text

    def _require(self, path: str) -> tuple[GuestFiles, str]:
        found = self._walk(path, True)
        if found is None:
            raise GuestError(f"{self.root.volume}: {path}: there is no such file")
        return self._owner(found)

    def _owner(self, names: tuple[str, ...]) -> tuple[GuestFiles, str]:
        """Return the file system that has a path without links, and the path in it."""
        for length in range(len(names), -1, -1):
            place = self._mounts.get(names[:length])
            if place is not None:
                return place.files, f"{place.prefix}/{'/'.join(names[length:])}"
        raise GuestError("nothing is mounted at /")

    def _walk(self, path: str, follow: bool) -> tuple[str, ...] | None:
        todo = list(reversed(split_path(path)))
        at: list[str] = []
        links = 0
        while todo:
            name = todo.pop()
            if name == "..":
                at = at[:-1]
                continue
            names = (*at, name)
            entry = self._look_up(names)
            if entry is None:
                return None
            if entry.kind is FileKind.LINK and (todo or follow):
                links += 1
                if links > MAX_LINKS:
                    raise LinkError(f"{path}: over {MAX_LINKS} links are on the way; they lead in a circle")
                if entry.target.startswith("/"):
                    at = []
                todo += reversed(split_path(entry.target))
                if len(todo) > 4096:
                    raise LinkError(f"{path}: its links lead too far")
                continue
            at.append(name)
        return tuple(at)

    def _look_up(self, names: tuple[str, ...]) -> GuestEntry | None:
        if names not in self._known:
            if names in self._mounts:
                self._known[names] = GuestEntry(names[-1], FileKind.FOLDER, 0, 0o755)
            else:
                files, inner = self._owner(names)
                self._known[names] = files.entry(inner, follow=False)
        return self._known[names]
