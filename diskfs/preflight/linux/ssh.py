"""Whether one can log in by SSH: the server, whether it is started, its port, and users with keys."""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from diskfs.preflight.linux.services import Services, ServiceState
from diskfs.preflight.linux.text import SMALL_TEXT, Place, content_lines
from diskfs.preflight.linux.tree import GuestTree

MAX_USERS = 2_000
MAX_PEOPLE = 200
"""Users whose keys are looked for."""
MAX_INCLUDED = 100
"""Files that sshd_config includes, in all."""
SERVERS = ("/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/bin/sshd", "/sbin/sshd")
_KEY = re.compile(r"(?:^|\s)(?:ssh-(?:rsa|dss|ed25519)|ecdsa-sha2-\S+|sk-\S+)\s+[A-Za-z0-9+/]{20,}")


@dataclass(frozen=True, slots=True)
class User:
    name: str
    uid: int
    home: str
    shell: str
    line: int

    @property
    def can_log_in(self) -> bool:
        return not self.shell.endswith(("/nologin", "/false", "/sync", "/shutdown", "/halt"))


def parse_passwd(text: str) -> Iterator[User]:
    """Yield the users of /etc/passwd; lines that are none are left out."""
    for count, (number, line) in enumerate(content_lines(text)):
        fields = line.split(":")
        if count >= MAX_USERS:
            return
        if len(fields) >= 6 and fields[2].isascii() and fields[2].isdigit() and len(fields[2]) < 11:
            yield User(fields[0], int(fields[2]), fields[5], fields[6] if len(fields) > 6 else "", number)


class Ssh:
    """What is known of the SSH server of one guest."""

    def __init__(self, tree: GuestTree, services: Services) -> None:
        self._tree = tree
        self._services = services
        self._included_count = 0

    @functools.cached_property
    def server(self) -> str | None:
        """The path of sshd."""
        return next((path for path in SERVERS if self._tree.is_file(path)), None)

    @functools.cached_property
    def service(self) -> ServiceState:
        return self._services.state("ssh", "sshd")

    @functools.cached_property
    def settings(self) -> dict[str, tuple[str, Place]]:
        """The directives of sshd_config and what it includes, outside Match blocks; the first of a name counts."""
        found: dict[str, tuple[str, Place]] = {}
        self._included_count = 0
        self._read_settings("/etc/ssh/sshd_config", found, 0)
        return found

    def _read_settings(self, path: str, found: dict[str, tuple[str, Place]], depth: int) -> None:
        for number, line in content_lines(self._tree.text(path, SMALL_TEXT) or ""):
            key, _, value = line.replace("=", " ", 1).partition(" ")
            key, value = key.lower(), value.strip()
            if key == "match":
                return
            if key == "include" and depth < 4:
                for pattern in value.split()[:16]:
                    for included in self._included(pattern):
                        self._included_count += 1
                        if self._included_count <= MAX_INCLUDED:
                            self._read_settings(included, found, depth + 1)
            elif len(found) < 500:
                # Port may be given several times; all of them count.
                if key == "port" and key in found:
                    found[key] = (f"{found[key][0]} {value}"[:200], found[key][1])
                found.setdefault(key, (value, Place(path, number)))

    def _included(self, pattern: str) -> list[str]:
        pattern = pattern if pattern.startswith("/") else f"/etc/ssh/{pattern}"
        folder, _, last = pattern.rpartition("/")
        if "*" not in last:
            return [pattern]
        suffix = last.rpartition("*")[2]
        return [path for path in self._tree.names(folder, suffix)[:100] if self._tree.is_file(path)]

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports sshd listens on; 22 if it is not said."""
        words = self.settings.get("port", ("22", Place("")))[0].split()
        numbers = tuple(int(word) for word in words if word.isascii() and word.isdigit() and 0 < len(word) < 6)
        return numbers or (22,)

    @functools.cached_property
    def users(self) -> tuple[User, ...]:
        return tuple(parse_passwd(self._tree.text("/etc/passwd") or ""))

    @functools.cached_property
    def lowest_uid(self) -> int:
        """The first uid of people: UID_MIN of login.defs; 500 on old systems."""
        for _, line in content_lines(self._tree.text("/etc/login.defs") or ""):
            words = line.split()
            if words[0] == "UID_MIN" and len(words) > 1 and words[1].isdigit() and len(words[1]) < 8:
                return int(words[1])
        return 1000

    def key_files(self, user: User) -> list[str]:
        """Return where sshd looks for the keys of a user."""
        value = self.settings.get("authorizedkeysfile", (".ssh/authorized_keys .ssh/authorized_keys2", Place("")))[0]
        paths = []
        for word in value.split()[:8]:
            path = word.replace("%h", user.home).replace("%u", user.name).replace("%%", "%")
            paths.append(path if path.startswith("/") else f"{user.home.rstrip('/')}/{path}")
        return paths

    def has_key(self, user: User) -> str | None:
        """Return the file that holds a public key of the user, or None."""
        for path in self.key_files(user):
            if not path.startswith("/") or len(path) > 1000:
                continue
            text = self._tree.text(path, SMALL_TEXT) if self._tree.is_file(path) else None
            if text is not None and any(_KEY.search(line) for _, line in content_lines(text)):
                return path
        return None

    def people_with_keys(self) -> list[tuple[User, str]]:
        """Return the users that are not root, may log in and have a public key, with the file that holds it."""
        found = []
        people = [one for one in self.users if self.lowest_uid <= one.uid < 60_000 and one.can_log_in]
        for user in people[:MAX_PEOPLE]:
            path = self.has_key(user)
            if path is not None:
                found.append((user, path))
        return found
