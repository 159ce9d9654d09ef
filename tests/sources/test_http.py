"""Files behind URLs: exact ranges or an error, pinned to one version, and no way to another place (S1, S4, T6)."""

import os
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from diskfs.disks.opening import open_source
from diskfs.errors import AccessDenied, SourceChanged, SourceError, SourceNotFound
from diskfs.sources.locate import open_location
from diskfs.sources.locations import Location, RemoteOptions, file_name, shown
from diskfs_formats.errors import OutOfRange, ParentUnavailable, UnsafeReference, UnsupportedFeature
from diskfs_formats.source import read_ranges
from tests.helpers import assert_same_bytes
from tests.servers.faulty import FAULTS, FaultyServer, Request

KIB = 1 << 10
MIB = 1 << 20
CONTENT = os.urandom(3 * MIB + 777)
PATIENT = RemoteOptions(deadline=20)
HASTY = RemoteOptions(deadline=1)


def faulty_after_probe(fault: str) -> Callable[[Request], str | None]:
    return lambda request: None if request.range == (0, 0) else fault


def test_reads_are_exact_on_both_sides_of_every_block(web: FaultyServer) -> None:
    source = open_location(web.put("disk.raw", CONTENT))
    assert source.size == len(CONTENT)
    for edge in range(0, len(CONTENT), 256 * KIB):
        for offset in (edge - 1, edge, edge + 1):
            for length in (1, 2, 4096, 256 * KIB, 256 * KIB + 2, MIB):
                if 0 <= offset <= len(CONTENT) - length:
                    assert_same_bytes(source.read_at(offset, length), CONTENT[offset : offset + length])
                    ready = source.read_if_ready(offset, length)
                    assert ready is not None
                    assert_same_bytes(ready, CONTENT[offset : offset + length])
    assert_same_bytes(source.read_at(0, len(CONTENT)), CONTENT)
    assert all(request.method == "GET" for request in web.log)


@pytest.mark.parametrize(
    ("offset", "length"), [(-1, 1), (0, -1), (len(CONTENT), 1), (0, len(CONTENT) + 1), (1 << 63, 1)]
)
def test_reads_past_the_end_are_refused(web: FaultyServer, offset: int, length: int) -> None:
    source = open_location(web.put("disk.raw", CONTENT))
    for read in (source.read_at, source.read_if_ready):
        with pytest.raises(OutOfRange):
            read(offset, length)


@pytest.mark.parametrize("size", [1, 256 * KIB - 1, 256 * KIB, 256 * KIB + 1])
def test_small_files_are_read_whole(web: FaultyServer, size: int) -> None:
    source = open_location(web.put("disk.raw", CONTENT[:size]))
    assert source.read_at(0, size) == CONTENT[:size]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_empty_file_is_an_empty_disk(web: FaultyServer, ranges: bool) -> None:
    source = open_location(web.put("empty", b"", ranges=ranges))
    assert source.size == 0
    assert source.read_at(0, 0) == b""


def test_several_ranges_are_fetched_side_by_side(web: FaultyServer) -> None:
    source = open_location(web.put("disk.raw", os.urandom(64 * MIB)))
    web.latency = 0.2
    before = len(web.log)
    ranges = [(offset, 4096) for offset in range(0, 64 * MIB, 8 * MIB)]
    found = read_ranges(source, ranges)
    stored = web.objects["disk.raw"]
    assert found == [stored.read(offset, length) for offset, length in ranges]
    assert len(web.log) - before == 8


def test_a_server_without_ranges_is_refused_by_name(web: FaultyServer) -> None:
    with pytest.raises(UnsupportedFeature, match=r"cannot send parts of a file.*--spool"):
        open_location(web.put("disk.raw", CONTENT, ranges=False))


@pytest.mark.parametrize("ranges", [True, False])
def test_spooling_is_for_servers_without_ranges(web: FaultyServer, ranges: bool) -> None:
    source = open_location(web.put("disk.raw", CONTENT, ranges=ranges), RemoteOptions(spool=True))
    assert_same_bytes(source.read_at(0, len(CONTENT)), CONTENT)
    requests = len(web.log)
    source.read_at(MIB, MIB)
    assert len(web.log) == requests
    source.close()


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in {"stall", "stall-body", "slow"}])
def test_one_fault_of_any_kind_goes_unnoticed(web: FaultyServer, fault: str) -> None:
    source = open_location(web.put("disk.raw", CONTENT), PATIENT)
    faults = iter([fault, fault])
    web.choose = lambda request: next(faults, None)
    assert_same_bytes(source.read_at(0, len(CONTENT)), CONTENT)
    assert web.counted()[fault] >= 1


@pytest.mark.parametrize(
    "fault", ["whole", "shifted", "no-range-header", "gzip", "extra", "cut-header", "503", "reset"]
)
def test_faults_without_end_are_an_error_and_never_other_bytes(web: FaultyServer, fault: str) -> None:
    url = web.put("disk.raw", CONTENT)
    source = open_location(url, HASTY)
    web.choose = faulty_after_probe(fault)
    with pytest.raises(SourceError, match=r"disk\.raw: 262144 bytes at offset 0x100000: .*given up after 1 s"):
        source.read_at(MIB, 4096)
    web.choose = lambda request: None
    assert source.read_at(MIB, 4096) == CONTENT[MIB : MIB + 4096]


def test_a_try_that_begins_when_the_time_is_up_is_still_a_try(web: FaultyServer) -> None:
    """A pause may end later than it should: the time that is left is then none, which no library takes as a timeout."""
    url = web.put("disk.raw", CONTENT)
    assert open_location(url, RemoteOptions(deadline=0)).size == len(CONTENT)
    assert open_location(web.put("empty", b""), RemoteOptions(deadline=0)).size == 0
    web.choose = lambda request: "503"
    with pytest.raises(SourceError, match=r"opening it: .*503.*given up after 0 s"):
        open_location(url, RemoteOptions(deadline=0))


def test_what_hangs_is_given_up_at_the_deadline(web: FaultyServer) -> None:
    source = open_location(web.put("disk.raw", CONTENT), RemoteOptions(deadline=3))
    web.choose = lambda request: "stall"
    web.stall_seconds = 30
    with pytest.raises(SourceError):
        source.read_at(MIB, 4096)


def test_a_cut_body_is_resumed_where_it_was_cut(web: FaultyServer) -> None:
    source = open_location(web.put("disk.raw", CONTENT), PATIENT)
    faults = iter(["stall-body"])
    web.stall_seconds = 0.1
    web.choose = lambda request: next(faults, None)
    assert_same_bytes(source.read_at(0, 2 * MIB), CONTENT[: 2 * MIB])
    first, resumed = [request.range for request in web.log[1:] if request.range and request.range[1] == 2 * MIB - 1][:2]
    assert first is not None
    assert resumed is not None
    assert first[0] == 0
    assert resumed[0] == MIB


@pytest.mark.parametrize("how", ["etag", "shrunken", "grown", "gone"])
def test_a_changed_file_is_named_as_changed(web: FaultyServer, how: str) -> None:
    source = open_location(web.put("disk.raw", CONTENT))
    assert source.read_at(0, 16) == CONTENT[:16]
    if how == "gone":
        del web.objects["disk.raw"]
    else:
        data = {"etag": CONTENT[::-1], "shrunken": CONTENT[:100], "grown": CONTENT + b"1"}[how]
        web.put("disk.raw", data)
    with pytest.raises(SourceChanged):
        source.read_at(MIB, 16)
    # What is in memory is of the version that was opened.
    assert source.read_at(0, 16) == CONTENT[:16]


@pytest.mark.parametrize("how", ["etag", "shrunken"])
def test_a_change_is_noticed_where_the_server_ignores_if_match(web: FaultyServer, how: str) -> None:
    source = open_location(web.put("disk.raw", CONTENT, etag='W/"1"'))
    web.put("disk.raw", CONTENT if how == "etag" else CONTENT[: 2 * MIB], etag='W/"2"' if how == "etag" else 'W/"1"')
    with pytest.raises(SourceChanged):
        source.read_at(MIB, 16)


def test_without_an_etag_the_time_of_the_change_tells(web: FaultyServer) -> None:
    source = open_location(web.put("disk.raw", CONTENT, etag=None))
    source.read_at(0, 16)
    assert web.log[-1].headers["if-unmodified-since"] == "Thu, 01 Oct 2026 10:00:00 GMT"
    web.put("disk.raw", CONTENT[::-1], etag=None, modified="Thu, 01 Oct 2026 10:00:01 GMT")
    with pytest.raises(SourceChanged, match="modified Thu, 01 Oct 2026 10:00:00 GMT then"):
        source.read_at(MIB, 16)


def test_a_file_that_no_version_can_be_told_of_is_refused(web: FaultyServer) -> None:
    with pytest.raises(UnsupportedFeature, match=r"neither ETag nor Last-Modified.*--spool"):
        open_location(web.put("disk.raw", CONTENT, etag=None, modified=None))


@pytest.mark.parametrize(
    ("status", "error"), [(404, SourceNotFound), (403, AccessDenied), (401, AccessDenied), (418, SourceError)]
)
def test_refusals_are_told_apart(web: FaultyServer, status: int, error: type[Exception]) -> None:
    url = web.put("disk.raw", CONTENT)
    web.denied = lambda request: (status, "No")
    with pytest.raises(error, match=str(status)):
        open_location(url)


def test_a_url_that_expires_is_denied_and_works_again_afterwards(web: FaultyServer) -> None:
    source = open_location(web.put("disk.raw", CONTENT) + "?signature=CANARY")
    web.denied = lambda request: (403, "AccessDenied")
    with pytest.raises(AccessDenied, match="may have expired") as caught:
        source.read_at(MIB, 16)
    assert "CANARY" not in str(caught.value)
    web.denied = lambda request: None
    assert source.read_at(MIB, 16) == CONTENT[MIB : MIB + 16]


# Redirects and addresses (T6)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_within_the_host_are_followed_once(web: FaultyServer, status: int) -> None:
    web.put("real/disk.raw", CONTENT)
    web.redirects["disk.raw"] = (status, "/real/disk.raw?token=CANARY")
    source = open_location(f"{web.endpoint}/disk.raw")
    assert source.read_at(MIB, 16) == CONTENT[MIB : MIB + 16]
    assert [request.path.partition("?")[0] for request in web.log] == ["/disk.raw", "/real/disk.raw", "/real/disk.raw"]
    assert "CANARY" not in source.name


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:{other}/secret", "http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "ftp://127.0.0.1/x",
     "https://127.0.0.1:{own}/disk.raw", "http://user@127.0.0.1:{own}/real.raw", "//127.0.0.1:{other}/x", "s3://images/x",
     "http://[::1]:{own}/x", "http://127.0.0.1:99999/x"],
)  # fmt: skip
def test_redirects_to_another_place_are_refused(web: FaultyServer, status: int, target: str) -> None:
    with FaultyServer() as other:
        other.put("secret", b"secret")
        own_port, other_port = (server.endpoint.rpartition(":")[2] for server in (web, other))
        web.redirects["disk.raw"] = (status, target.format(own=own_port, other=other_port))
        with pytest.raises(UnsafeReference, match="redirects to"):
            open_location(f"{web.endpoint}/disk.raw")
        assert other.log == []


def test_redirects_in_a_circle_end(web: FaultyServer) -> None:
    web.redirects["disk.raw"] = (302, "/disk.raw")
    with pytest.raises(SourceError, match="redirected over 5 times"):
        open_location(f"{web.endpoint}/disk.raw")


def test_a_redirect_that_no_longer_leads_anywhere_is_asked_for_anew(web: FaultyServer) -> None:
    web.put("one.raw", CONTENT, etag='"same"')
    web.redirects["disk.raw"] = (302, "/one.raw")
    source = open_location(f"{web.endpoint}/disk.raw")
    web.objects["two.raw"] = web.objects.pop("one.raw")
    web.redirects["disk.raw"] = (302, "/two.raw")
    assert source.read_at(MIB, 16) == CONTENT[MIB : MIB + 16]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "192.168.1.1", "169.254.169.254", "::1", "fd00::1", "0.0.0.0"]
)
def test_names_that_lead_to_private_addresses_are_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    answer = [(family, socket.SOCK_STREAM, 6, "", (address, 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    with pytest.raises(UnsafeReference, match=r"not public; use --allow-private"):
        open_location("http://innocent.example/disk.raw")


def test_a_name_is_resolved_once(web: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second answer of the name server could be another one."""
    url = web.put("disk.raw", CONTENT).replace("127.0.0.1", "innocent.example")
    real, asked = socket.getaddrinfo, []

    def answer(host: str, *rest: object, **more: object) -> object:
        if host == "innocent.example":
            asked.append(host)
            assert len(asked) == 1
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))]
        return real(host, *rest, **more)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    source = open_location(url, RemoteOptions(allow_private=True))
    assert source.read_at(MIB, 16) == CONTENT[MIB : MIB + 16]
    assert web.log[-1].headers["host"].startswith("innocent.example:")


@pytest.mark.parametrize(
    "url", ["http://", "http:///disk.raw", "http://127.0.0.1:x/d", "http://127.0.0.1:99999/d", "http://a b/"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(SourceError, match="no URL"):
        open_location(url)


def test_an_address_of_the_new_kind_is_connected_to() -> None:
    if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("this machine has no IPv6")
    with FaultyServer("::1") as server:
        server.put("disk.raw", CONTENT)
        source = open_location(f"{server.endpoint}/disk.raw")
        assert source.read_at(MIB, 16) == CONTENT[MIB : MIB + 16]


def test_certificates_are_checked_for_the_name_although_the_address_is_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with FaultyServer(tls=context) as server:
        server.put("disk.raw", CONTENT)
        url = f"{server.endpoint}/disk.raw"
        with pytest.raises(SourceError, match="certificate is not accepted"):
            open_location(url.replace("127.0.0.1", "localhost"))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        source = open_location(url.replace("127.0.0.1", "localhost"))
        assert source.read_at(MIB, 16) == CONTENT[MIB : MIB + 16]
        with pytest.raises(SourceError, match="certificate is not accepted"):
            open_location(url)
        assert all(request.path == "/disk.raw" for request in server.log)


def test_other_schemes_are_refused_by_name() -> None:
    for scheme in ("ftp", "file", "gopher", "nbd", "ssh"):
        with pytest.raises(UnsupportedFeature, match=scheme):
            open_location(f"{scheme}://127.0.0.1/x")


def test_a_server_that_is_not_there_is_told_soon() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(SourceError, match="cannot be reached"):
            open_location(f"http://127.0.0.1:{port}/disk.raw")


# Files beside the image


def test_the_extents_of_a_split_image_lie_beside_it(web: FaultyServer) -> None:
    descriptor = (
        '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="twoGbMaxExtentFlat"\n'
        'RW 2048 FLAT "disk f001.vmdk" 0\nRW 2048 FLAT "disk-f002.vmdk" 0\n'
    )
    url = web.put("folder/disk.vmdk", descriptor.encode())
    web.put("folder/disk f001.vmdk", CONTENT[:MIB])
    web.put("folder/disk-f002.vmdk", CONTENT[MIB : 2 * MIB])
    with open_source(url) as opened:
        assert_same_bytes(opened.disk(0).image.read_at(0, 2 * MIB), CONTENT[: 2 * MIB])
    with pytest.raises(ParentUnavailable, match=r"disk f001\.vmdk.*query string"):
        open_source(url + "?signature=1")
    web.objects["folder/disk.vmdk"].data = descriptor.replace("disk-f002", "../up").encode()
    with pytest.raises(UnsafeReference, match="another folder"):
        open_source(url)


# What may be shown


@pytest.mark.parametrize(
    ("location", "public", "name"),
    [
        ("/a/b?c.raw", "/a/b?c.raw", "b?c.raw"),
        ("http://h/a/vm.ova?X-Amz-Signature=1#f", "http://h/a/vm.ova", "vm.ova"),
        ("https://u:p@h:1/a%20b.raw", "https://h:1/a%20b.raw", "a b.raw"),
        ("https://h", "https://h", ""),
        ("s3://b/k/vm.ova?versionId=3", "s3://b/k/vm.ova?versionId=3", "vm.ova"),
        ("s3://b/k%20.raw", "s3://b/k%20.raw", "k%20.raw"),
        ("https://h/p@q/x?y", "https://h/p@q/x", "x"),
    ],
)
def test_locations_are_shown_without_secrets(location: str, public: str, name: str) -> None:
    assert shown(location) == public
    assert str(Location(location)) == public
    assert Location(location).full == location
    assert file_name(location) == name


def test_names_of_users_reach_the_server_alone(web: FaultyServer) -> None:
    url = web.put("disk.raw", CONTENT).replace("//", "//us%40er:pass@")
    source = open_location(url)
    assert web.log[-1].headers["authorization"] == "Basic dXNAZXI6cGFzcw=="
    assert "pass" not in source.name


def test_local_files_load_nothing_of_this(tmp_path: Path) -> None:
    import sys

    (tmp_path / "disk.raw").write_bytes(bytes(MIB))
    script = (
        "import sys; from diskfs.cli.main import main; assert main(['info', sys.argv[1]]) == 0;"
        "print(*(name for name in sys.modules if name.split('.')[0] in "
        "('boto3', 'botocore', 'urllib3', 'ssl', 'http') or name.startswith('diskfs.sources.remote')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "disk.raw"], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert result.stdout.splitlines()[-1] == ""
