"""What servers, users and the environment may say that nobody expects: an error that names it, or the right bytes."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diskfs import clients
from diskfs.errors import SourceChanged, SourceError
from diskfs.proxies import proxy_for
from diskfs.retrying import seconds_asked
from diskfs.s3 import parse_place
from diskfs.sources.locate import open_location
from diskfs.sources.locations import RemoteOptions
from diskfs.sources.remote_source import names_object
from diskfs.sources.stored_cache import StoredCache
from diskfs_formats.errors import UnsafeReference
from tests.servers.faulty import FaultyServer, _Handler

KIB = 1 << 10
CONTENT = os.urandom(300 * KIB)
HASTY = RemoteOptions(deadline=2)


@pytest.mark.parametrize(
    "text",
    ["\xb2", "1\xb2", "Mon, 01 Jan 0001 00:00:00 -0000", "Mon, 01 Jan 2024 00:00:00 +99999999999999", "-1", "soon"],
)
def test_a_pause_that_cannot_be_read_is_none(text: str) -> None:
    assert seconds_asked(text) == 0


def test_a_redirect_to_what_is_no_url_is_refused(web: FaultyServer) -> None:
    web.redirects["disk.raw"] = (302, "http://[bad")
    with pytest.raises(UnsafeReference, match="redirects to"):
        open_location(web.endpoint + "/disk.raw")


@pytest.mark.parametrize(
    ("user", "sent"), [("us%E2%82%ACer:p%40", "dXPigqxlcjpwQA=="), ("us€er:p@", "dXPigqxlcjpwQA==")]
)
def test_any_user_and_password_can_be_sent(user: str, sent: str, web: FaultyServer) -> None:
    """RFC 7617; expected values by base64(1)."""
    url = web.put("disk.raw", CONTENT)
    assert open_location(url.replace("://", f"://{user}@")).read_at(0, 10) == CONTENT[:10]
    assert {request.headers["authorization"] for request in web.log} == {f"Basic {sent}"}


def test_a_host_outside_ascii_is_asked_for_by_its_name_in_ascii(
    web: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diskfs.sources.http.resolve", lambda *_place, **_how: ["127.0.0.1"])
    url = web.put("disk.raw", CONTENT).replace("127.0.0.1", "例え.example")
    assert open_location(url, RemoteOptions(allow_private=True)).read_at(0, 10) == CONTENT[:10]
    # RFC 3492 and the registry of test names: 例え is xn--r8jz45g.
    assert {request.headers["host"].partition(":")[0] for request in web.log} == {"xn--r8jz45g.example"}


@pytest.mark.parametrize("host", ["169.254.169.254", "::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "fd00:ec2::254"])
def test_the_service_of_credentials_is_refused_however_it_is_spelled(host: str) -> None:
    with pytest.raises(UnsafeReference, match="not public"):
        clients.resolve(host, 80, "URL", allow_private=False)


def test_bytes_of_the_environment_that_are_no_text_reach_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://us\udcff:p@127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    proxy = proxy_for("http", "images.example", 80, "URL")
    assert proxy is not None
    assert proxy.authorization == "Basic dXP/OnA="


@pytest.mark.parametrize("url", ["http://user:CANARY@ho st:1", "user:CANARY@host"])
def test_a_service_that_is_none_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(SourceError, match="--endpoint-url") as caught:
        open_location("s3://bucket/key", RemoteOptions(endpoint_url=url, sign=False))
    assert "CANARY" not in str(caught.value)


def test_a_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(SourceError, match="UTF-8"):
        parse_place("s3://bucket/\udcff", "name")


def test_a_version_may_have_a_plus_sign() -> None:
    """As Amazon's own example has it (S3 User Guide, "Versioning")."""
    version = "3/L4kqtJlcpXroDTDmJ+rmSpXd3dIbrHY+MTRCxf3vjVBH40Nr8X8gdRQBpUMLUo"
    assert parse_place(f"s3://bucket/key?versionId={version}", "").version_id == version
    assert parse_place("s3://bucket/key?versionId=a%2Bb&x=1", "").version_id == "a+b"
    assert parse_place("s3://bucket/key?versionId=", "").version_id is None


def test_a_change_is_noticed_where_answers_lose_their_etag(web: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_location(web.put("disk.raw", CONTENT), HASTY)
    web.put("disk.raw", CONTENT[::-1], etag=None, modified="Fri, 02 Oct 2026 10:00:00 GMT")
    monkeypatch.setattr(_Handler, "do_GET", _ignoring_if_match(_Handler.do_GET))
    with pytest.raises(SourceChanged):
        source.read_at(0, 10)


@pytest.mark.parametrize("header", [b'ETag: "v', b'ETag: "', b"Last-Modified: Thu, 01 Oct 20"])
def test_an_answer_that_ends_in_its_header_is_asked_for_again(
    header: bytes, web: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    etag = "W/" if header.startswith(b"Last") else ""
    source = open_location(web.put("disk.raw", CONTENT, etag=f'{etag}"version"'))
    answer = _Handler._answer
    cut: list[str] = []

    def once(handler: _Handler, *what: Any) -> None:
        if cut:
            answer(handler, *what)
            return
        cut.append("")
        handler.wfile.write(b"HTTP/1.1 206 Partial Content\r\n" + header)
        handler.close_connection = True

    monkeypatch.setattr(_Handler, "_answer", once)
    assert source.read_at(0, len(CONTENT)) == CONTENT
    assert cut


@pytest.mark.parametrize("endless", [b"X-Header: a\r\n", b"x", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_header_that_does_not_end_is_given_up(
    endless: bytes, web: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drip(handler: _Handler, *_what: Any) -> None:
        handler.wfile.write(b"" if endless.startswith(b"HTTP") else b"HTTP/1.1 206 Partial Content\r\n")
        with contextlib.suppress(OSError):
            # Few enough that not their number ends it.
            for _ in range(60):
                handler.wfile.write(endless)
                time.sleep(0.2)
        handler.close_connection = True

    url = web.put("disk.raw", CONTENT)
    monkeypatch.setattr(_Handler, "_answer", drip)
    begun = time.monotonic()
    with pytest.raises(SourceError, match="given up"):
        open_location(url, HASTY)
    assert time.monotonic() - begun < 8


def _ignoring_if_match(get: Callable[[_Handler], None]) -> Callable[[_Handler], None]:
    def do_get(handler: _Handler) -> None:
        del handler.headers["If-Match"]
        get(handler)

    return do_get


def test_two_files_that_only_the_query_tells_apart_are_two_in_the_cache(web: FaultyServer, tmp_path: Path) -> None:
    options = RemoteOptions(cache_folder=tmp_path / "cache")
    url = web.put("get", CONTENT, etag='"1000-size"')
    assert open_location(url + "?id=1&X-Amz-Signature=1", options).read_at(0, len(CONTENT)) == CONTENT
    web.put("get", CONTENT[::-1], etag='"1000-size"')
    assert open_location(url + "?id=2&X-Amz-Signature=1", options).read_at(0, len(CONTENT)) == CONTENT[::-1]
    # The same with another signature is not fetched again.
    before = len(web.log)
    assert open_location(url + "?id=1&X-Amz-Signature=2", options).read_at(0, len(CONTENT)) == CONTENT
    assert [request.range for request in web.log[before:]] == [(0, 0)]


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_cache_that_others_may_write_to_is_not_used(mode: int, tmp_path: Path) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(SourceError, match="other users"):
        StoredCache(tmp_path, 1 << 20)
    tmp_path.chmod(0o775)
    StoredCache(tmp_path, 1 << 20)


def test_processes_of_one_number_share_a_cache(tmp_path: Path) -> None:
    """In containers every process may have the number 1."""
    first, second = StoredCache(tmp_path, 1 << 20), StoredCache(tmp_path, 1 << 20)
    assert first._mark != second._mark


def test_a_copy_whose_length_nobody_tells_is_refused(web: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(
        handler: _Handler, status: int, headers: dict[str, str | None], data: bytes, length: int | None = None
    ) -> None:
        handler.send_response(status)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2])
        handler.close_connection = True

    url = web.put("disk.raw", CONTENT, ranges=False)
    monkeypatch.setattr(_Handler, "_send", cut)
    with pytest.raises(SourceError, match="how long"):
        open_location(url, RemoteOptions(spool=True, deadline=2))


@pytest.mark.parametrize("whole", [True, False])
def test_a_copy_in_chunks_is_whole_or_an_error(whole: bool, web: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def chunked(
        handler: _Handler, status: int, headers: dict[str, str | None], data: bytes, length: int | None = None
    ) -> None:
        handler.send_response(status)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, len(data), 1000):
            piece = data[start : start + 1000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n" if whole else b"")
        handler.close_connection = True

    url = web.put("disk.raw", CONTENT, ranges=False)
    monkeypatch.setattr(_Handler, "_send", chunked)
    options = RemoteOptions(spool=True, deadline=2)
    if whole:
        assert open_location(url, options).read_at(0, len(CONTENT)) == CONTENT
    else:
        with pytest.raises(SourceError, match="copying it failed"):
            open_location(url, options)


def test_a_time_that_is_none_does_not_stand_for_one(web: FaultyServer) -> None:
    url = web.put("disk.raw", CONTENT, modified="Thu, 01 Oct 2026 99999999999999999999:00:00 GMT")
    status = getattr(open_location(url), "status")  # noqa: B009 - of either kind of source
    assert abs(status.st_mtime_ns) < 1 << 63


@pytest.mark.parametrize("key", ["a#b", "a?x=1", "a\nb", "a b", "ü", "a?versionId=1"])
def test_a_source_is_known_as_the_target_whatever_its_key(key: str, web: FaultyServer) -> None:
    web.put(f"bucket/{key.removesuffix('?versionId=1')}", CONTENT)
    options = RemoteOptions(endpoint_url=web.endpoint, sign=False, deadline=2)
    source = open_location(f"s3://bucket/{key}", options)
    assert names_object("bucket", key.removesuffix("?versionId=1")) == source.name
    assert names_object("bucket", key + "x") is None
    source.close()
