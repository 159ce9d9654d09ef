"""Manifests: the forms that producers write, and what verifying says."""

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from diskfs_formats.errors import CorruptImage, OutOfRange
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.manifest import DIGEST_DIGITS, MAX_MANIFEST_SIZE, ManifestEntry, parse_manifest, verify_manifest
from diskfs_formats.source import ByteSource, MemorySource

EMPTY_SHA1 = "da39a3ee5e6b4b0d3255bfef95601890afd80709"
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""Published digests of no bytes at all."""


def entries(text: str, name: str = "vm.mf") -> list[ManifestEntry]:
    return list(parse_manifest(text.encode(), name).entries)


def problems(text: str) -> list[str]:
    return [finding.message for finding in parse_manifest(text.encode(), "vm.mf").findings]


def verify(text: str, files: Mapping[str, bytes], name: str = "vm.mf") -> list[Finding]:
    sources: dict[str, ByteSource] = {path: MemorySource(data, path) for path, data in files.items()}
    return list(verify_manifest(parse_manifest(text.encode(), name), sources))


@pytest.mark.parametrize(
    "line",
    [
        f"SHA256(a.vmdk)= {EMPTY_SHA256}",
        f"SHA256(a.vmdk)={EMPTY_SHA256}",
        f"SHA256 (a.vmdk) = {EMPTY_SHA256}",
        f"  SHA256(a.vmdk)= {EMPTY_SHA256}  ",
        f"sha256(a.vmdk)= {EMPTY_SHA256.upper()}",
        f"SHA-256(a.vmdk)= {EMPTY_SHA256}",
        f"SHA2-256(a.vmdk)= {EMPTY_SHA256}",
        f"SHA256(./a.vmdk)= {EMPTY_SHA256}",
        f"{EMPTY_SHA256}  a.vmdk",
        f"{EMPTY_SHA256} *a.vmdk",
    ],
)
def test_forms_of_a_line(line: str) -> None:
    assert entries(line) == [ManifestEntry("SHA256", "a.vmdk", EMPTY_SHA256)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", ""])
def test_ends_of_a_line(end: str) -> None:
    text = f"SHA1(a)= {EMPTY_SHA1}\n\n{end}SHA1(b)= {EMPTY_SHA1}{end}"
    assert [entry.name for entry in entries(text)] == ["a", "b"]


def test_names_may_hold_anything() -> None:
    names = ["a b.vmdk", "a(1).vmdk", "a)= b", "disque-é.vmdk", "a=b"]
    assert [entry.name for entry in entries("".join(f"SHA1({name})= {EMPTY_SHA1}\n" for name in names))] == names


def test_names_are_relative_to_the_manifest_s_folder() -> None:
    assert [entry.name for entry in entries(f"SHA1(a)= {EMPTY_SHA1}", "sub/vm.mf")] == ["sub/a"]


@pytest.mark.parametrize("algorithm", DIGEST_DIGITS)
def test_every_algorithm_is_verified(algorithm: str) -> None:
    digest = hashlib.new(algorithm.lower(), b"content").hexdigest()
    assert verify(f"{algorithm}(a)= {digest}", {"a": b"content"}) == []
    (finding,) = verify(f"{algorithm}(a)= {digest}", {"a": b"Content"})
    assert (finding.rule, finding.severity) == ("manifest-digest", Severity.ERROR)
    assert digest in finding.message
    assert hashlib.new(algorithm.lower(), b"Content").hexdigest() in finding.message


@pytest.mark.parametrize("tool", ["md5sum", "sha1sum", "sha224sum", "sha256sum", "sha384sum", "sha512sum"])
def test_output_of_the_sum_tools_is_a_manifest(tool: str, tmp_path: Path) -> None:
    data = b"content" * 100
    (tmp_path / "disk 1.vmdk").write_bytes(data)
    text = subprocess.run([tool, "disk 1.vmdk"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert verify(text, {"disk 1.vmdk": data}) == []
    assert [finding.rule for finding in verify(text, {"disk 1.vmdk": data[:-1]})] == ["manifest-digest"]


@pytest.mark.parametrize("digits", [63, 65, 0, 40])
def test_a_digest_of_the_wrong_length_is_not_used(digits: int) -> None:
    assert entries(f"SHA256(a)= {'0' * digits}") == []
    (message,) = problems(f"SHA256(a)= {'0' * digits}")
    assert "expected 64 hexadecimal digits" in message


def test_a_digest_that_is_no_hexadecimal_is_not_used() -> None:
    assert entries(f"SHA1(a)= {'g' * 40}") == []


def test_an_unknown_algorithm_is_a_finding() -> None:
    (message,) = problems("WHIRLPOOL(a)= 00")
    assert "'WHIRLPOOL' for 'a' is not known" in message
    assert "line 1" in message


@pytest.mark.parametrize("line", ["nonsense", "SHA1(a", "SHA1(a= 00", "SHA1 a)= 00", "=", "(=", "()="])
def test_lines_that_are_none_are_findings(line: str) -> None:
    assert entries(line) == []
    assert len(problems(line)) == 1


def test_a_file_with_an_unusable_digest_counts_as_listed() -> None:
    found = verify(f"SHA1(a)= 00\nSHA1(b)= {EMPTY_SHA1}", {"a": b"", "b": b""})
    assert [finding.rule for finding in found] == ["manifest-line"]


@pytest.mark.parametrize("text", ["", " " * 68, "\n\n", "\0" * 10])
def test_a_blank_manifest_is_one_finding(text: str) -> None:
    assert [finding.rule for finding in verify(text, {"vm.ovf": b"", "a.vmdk": b""})] == ["manifest-empty"]


def test_a_byte_order_mark_is_passed_over() -> None:
    assert len(entries("\ufeff" + f"SHA1(a)= {EMPTY_SHA1}")) == 1


def test_a_listed_file_that_is_missing_is_a_warning() -> None:
    (finding,) = verify(f"SHA1(gone)= {EMPTY_SHA1}\nSHA1(a)= {EMPTY_SHA1}", {"a": b""})
    assert (finding.rule, finding.severity) == ("manifest-file-missing", Severity.WARNING)
    assert "'gone'" in finding.message


def test_a_file_that_is_not_listed_is_a_warning() -> None:
    found = verify(f"SHA1(a)= {EMPTY_SHA1}", {"a": b"", "b": b"", "vm.mf": b"", "vm.cert": b"", "VM.CERT": b""})
    assert [(finding.rule, finding.severity) for finding in found] == [("manifest-unlisted", Severity.WARNING)]
    assert "'b'" in found[0].message


def test_two_digests_of_one_file_are_both_verified() -> None:
    text = f"SHA1(a)= {EMPTY_SHA1}\nSHA256(a)= {EMPTY_SHA256}\nSHA1(a)= {'0' * 40}"
    (finding,) = verify(text, {"a": b""})
    assert "SHA1 is da39" in finding.message
    assert "says 0000" in finding.message


def test_a_file_is_read_once_in_bounded_pieces() -> None:
    class Counting(MemorySource):
        def read_at(self, offset: int, length: int, /) -> bytes:
            reads.append((offset, length))
            return super().read_at(offset, length)

    reads: list[tuple[int, int]] = []
    data = bytes(9 << 20)
    text = f"SHA1(a)= {hashlib.sha1(data).hexdigest()}\nMD5(a)= {hashlib.md5(data).hexdigest()}"
    assert list(verify_manifest(parse_manifest(text.encode(), "vm.mf"), {"a": Counting(data, "a")})) == []
    assert reads == [(0, 4 << 20), (4 << 20, 4 << 20), (8 << 20, 1 << 20)]


def test_a_file_that_cannot_be_read_does_not_stop_the_others() -> None:
    class Failing(MemorySource):
        def read_at(self, offset: int, length: int, /) -> bytes:
            raise OutOfRange("the source shrank")

    manifest = parse_manifest(f"SHA1(a)= {EMPTY_SHA1}\nSHA1(b)= {'0' * 40}".encode(), "vm.mf")
    found = list(verify_manifest(manifest, {"a": Failing(b"x", "a"), "b": MemorySource(b"x", "b")}))
    assert [finding.rule for finding in found] == ["manifest-unreadable", "manifest-digest"]
    assert "the source shrank" in found[0].message


def test_both_sides_of_the_size_limit() -> None:
    assert parse_manifest(b" " * MAX_MANIFEST_SIZE, "vm.mf").entries == ()
    with pytest.raises(CorruptImage, match="1048577 bytes, at most 1048576"):
        parse_manifest(b" " * (MAX_MANIFEST_SIZE + 1), "vm.mf")


def test_findings_are_bounded() -> None:
    assert len(problems("nonsense\n" * 100_000)) == 100


def test_names_are_shown_without_control_characters() -> None:
    (finding,) = verify(f"SHA1(\x1b[31m\u202e)= {EMPTY_SHA1}", {})
    assert not {"\x1b", "\u202e"} & set(finding.message)
