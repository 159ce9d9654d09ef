"""The local accounts in the SAM hive, and whether they have a password, as far as that can be told.

The layout of the values F and V is not documented by Microsoft; it is that of the passwords' tools. The hashes are not
decrypted: with RC4 (up to Windows Server 2012 R2) the length tells whether there is one, with AES it only tells that
something is stored, which is so for an empty password too.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from diskfs.preflight.windows.readings import SAM, Registry

USERS = r"SAM\Domains\Account\Users"
ACB_DISABLED = 0x0001
ACB_PASSWORD_NOT_REQUIRED = 0x0004
_FLAGS_OFFSET = 0x38
_NAME_ENTRY = 0x0C
_HASH_ENTRY = 0xA8
_DESCRIPTORS_END = 0xCC
_REVISION_RC4 = 1
_REVISION_AES = 2
MAX_ACCOUNTS = 4096


@dataclass(frozen=True, slots=True)
class Account:
    """A local account; `has_password` is None where it cannot be told."""

    name: str
    where: str
    flags: int
    has_password: bool | None

    @property
    def is_disabled(self) -> bool:
        return bool(self.flags & ACB_DISABLED)

    @property
    def needs_no_password(self) -> bool:
        return bool(self.flags & ACB_PASSWORD_NOT_REQUIRED)


def read_accounts(registry: Registry) -> Iterator[Account]:
    """Yield the local accounts; raises DiskfsError if the hive cannot be read."""
    users = registry.key(SAM, USERS)
    if users is None:
        return
    for count, key in enumerate(users.subkeys()):
        if count >= MAX_ACCOUNTS:
            return
        fixed, variable = key.value("F"), key.value("V")
        if fixed is None or variable is None or len(fixed.data) < _FLAGS_OFFSET + 2:
            continue
        (flags,) = struct.unpack_from("<H", fixed.data, _FLAGS_OFFSET)
        name = _entry(variable.data, _NAME_ENTRY).decode("utf-16-le", "replace")
        yield Account(name, rf"{SAM}\{USERS}\{key.name}", flags, _has_password(_entry(variable.data, _HASH_ENTRY)))


def _entry(data: bytes, at: int) -> bytes:
    """Return what a descriptor of V (offset, length, of 32 bits each) leads to, or nothing."""
    if len(data) < _DESCRIPTORS_END:
        return b""
    offset, length = struct.unpack_from("<II", data, at)
    return data[_DESCRIPTORS_END + offset : _DESCRIPTORS_END + offset + min(length, 1024)]


def _has_password(stored: bytes) -> bool | None:
    """Tell by the stored NT hash: its header (identifier and revision of 16 bits each) and what follows."""
    if len(stored) < 4:
        return False
    (revision,) = struct.unpack_from("<H", stored, 2)
    if revision == _REVISION_RC4:
        return len(stored) >= 20
    if revision == _REVISION_AES:
        # 24 bytes are the header alone; the hash of an empty password is stored as any other.
        return False if len(stored) <= 24 else None
    return None
