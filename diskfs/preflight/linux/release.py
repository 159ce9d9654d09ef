"""Which distribution a guest is: os-release and the files that came before it.

Specification: os-release(5); the older files have the forms that their distributions gave them.
"""

import re
from dataclasses import dataclass
from typing import Protocol

from diskfs.preflight.linux.text import Place, content_lines, shell_assignments


class TextFiles(Protocol):
    """What is needed of a guest's tree."""

    def text(self, path: str, /) -> str | None:
        """Return a file's text, or None if there is no such file."""
        ...


@dataclass(frozen=True, slots=True)
class Release:
    """`id` is as in os-release; `version` the most exact one known, such as 12.4; `service_pack` of SUSE alone."""

    id: str
    name: str
    version: str
    place: Place
    service_pack: int | None = None
    codename: str = ""


# The file, the id, and what the text must match. More exact files first: redhat-release is on all of the family.
_RELEASE_FILES = (
    ("/etc/oracle-release", "ol", re.compile(r"Oracle Linux")),
    ("/etc/rocky-release", "rocky", re.compile(r"Rocky Linux")),
    ("/etc/almalinux-release", "almalinux", re.compile(r"AlmaLinux")),
    ("/etc/centos-release", "centos", re.compile(r"CentOS")),
    ("/etc/fedora-release", "fedora", re.compile(r"Fedora")),
    ("/etc/redhat-release", "ol", re.compile(r"Oracle Linux|Enterprise Linux Enterprise Linux")),
    ("/etc/redhat-release", "centos", re.compile(r"CentOS")),
    ("/etc/redhat-release", "rocky", re.compile(r"Rocky Linux")),
    ("/etc/redhat-release", "fedora", re.compile(r"Fedora")),
    ("/etc/redhat-release", "rhel", re.compile(r"Red Hat Enterprise Linux")),
    ("/etc/system-release", "amzn", re.compile(r"Amazon Linux")),
    ("/etc/system-release", "rhel", re.compile(r"Red Hat Enterprise Linux")),
)
_VERSION = re.compile(r"(?:release|AMI release|Linux)\s+(\d+(?:\.\d+)*)")
_UPDATE = re.compile(r"release (\d+) .*?Update (\d+)")
_NUMBERS = re.compile(r"\d+(?:\.\d+)*")


def find_release(files: TextFiles) -> Release | None:
    """Return what the guest says it is, or None if none of the files that say so is there."""
    found = _from_os_release(files, "/etc/os-release") or _from_os_release(files, "/usr/lib/os-release")
    found = found or _from_suse(files) or _from_release_files(files) or _from_lsb(files)
    if found is None:
        text = files.text("/etc/debian_version")
        if text is None:
            return None
        found = Release("debian", "Debian GNU/Linux", "", Place("/etc/debian_version", 1))
    return _refined(found, files)


def _from_os_release(files: TextFiles, path: str) -> Release | None:
    text = files.text(path)
    if text is None:
        return None
    values = shell_assignments(text)
    if "ID" not in values and "NAME" not in values:
        return None
    name = values.get("PRETTY_NAME", values.get("NAME", ("", 0)))[0]
    release_id, line = values.get("ID", ("", 0))
    version, version_line = values.get("VERSION_ID", ("", line))
    return Release(
        release_id.lower(), name or release_id, version, Place(path, version_line or line),
        codename=values.get("VERSION_CODENAME", ("", 0))[0],
    )  # fmt: skip


def _from_suse(files: TextFiles) -> Release | None:
    text = files.text("/etc/SuSE-release")
    if text is None:
        return None
    values = {
        key.strip(): value.strip()
        for _, line in content_lines(text)
        for key, separator, value in [line.partition("=")]
        if separator
    }
    first = text.strip().split("\n", 1)[0].strip()
    level = values.get("PATCHLEVEL", "")
    pack = int(level[:4]) if level.isascii() and level.isdigit() else None
    release_id = "sles" if "Enterprise" in first else "opensuse"
    return Release(release_id, first[:200], values.get("VERSION", ""), Place("/etc/SuSE-release", 1), pack)


def _from_release_files(files: TextFiles) -> Release | None:
    for path, release_id, pattern in _RELEASE_FILES:
        text = files.text(path)
        if text is None:
            continue
        first = text.strip().split("\n", 1)[0].strip()[:200]
        if not pattern.search(first):
            continue
        return Release(release_id, first, _version_in(first), Place(path, 1))
    return None


def _version_in(line: str) -> str:
    update = _UPDATE.search(line)
    if update:
        return f"{update[1]}.{update[2]}"
    version = _VERSION.search(line)
    return version[1] if version else ""


def _from_lsb(files: TextFiles) -> Release | None:
    text = files.text("/etc/lsb-release")
    if text is None:
        return None
    values = shell_assignments(text)
    if "DISTRIB_ID" not in values:
        return None
    name = values.get("DISTRIB_DESCRIPTION", values["DISTRIB_ID"])[0]
    version, line = values.get("DISTRIB_RELEASE", ("", values["DISTRIB_ID"][1]))
    codename = values.get("DISTRIB_CODENAME", ("", 0))[0]
    return Release(values["DISTRIB_ID"][0].lower(), name, version, Place("/etc/lsb-release", line), codename=codename)


def _refined(found: Release, files: TextFiles) -> Release:
    """Add what only another file tells: the point release of Debian and of CentOS, the service pack of SUSE."""
    if found.id == "debian":
        text = (files.text("/etc/debian_version") or "").strip()
        exact = text.split("\n", 1)[0].strip()[:40]
        # A testing system says its codename (trixie/sid); then os-release is all there is.
        if _NUMBERS.fullmatch(exact) and exact.split(".")[0] == (found.version or exact).split(".")[0]:
            return Release(found.id, found.name, exact, Place("/etc/debian_version", 1), codename=found.codename)
    elif found.id == "centos" and "." not in found.version:
        for path in ("/etc/centos-release", "/etc/redhat-release"):
            line = (files.text(path) or "").strip().split("\n", 1)[0]
            exact = _version_in(line)
            if exact and exact.split(".")[0] == (found.version or exact).split(".")[0]:
                # CentOS 7.9.2009 is 7.9.
                return Release(found.id, found.name, ".".join(exact.split(".")[:2]), Place(path, 1))
    elif found.id in {"sles", "sles_sap"} and found.service_pack is None:
        major, _, minor = found.version.partition(".")
        pack = int(minor[:4]) if minor.isascii() and minor.isdigit() else 0
        return Release("sles", found.name, major, found.place, pack)
    return found
