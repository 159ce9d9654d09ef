"""Proxies from the environment: which URL goes by which, what they are told, and what of them is shown (S1, T6)."""

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.request import proxy_bypass

import pytest

from diskfs import clients
from diskfs.errors import AccessDenied, SourceError
from diskfs.proxies import is_exempt, proxy_for
from diskfs.sources.locate import open_location
from diskfs.sources.locations import RemoteOptions
from diskfs_formats.errors import UnsafeReference, UnsupportedFeature
from tests.helpers import assert_same_bytes
from tests.servers.faulty import FaultyServer
from tests.servers.forward_proxy import ForwardProxy
from tests.servers.weed import S3Server

MIB = 1 << 20
CONTENT = os.urandom(2 * MIB + 777)
HASTY = RemoteOptions(deadline=1)
NAME = "images.example"
"""A name that no name server knows (RFC 2606); the proxy does."""


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def proxy() -> Iterator[ForwardProxy]:
    with ForwardProxy({NAME: "127.0.0.1"}) as running:
        yield running


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """What a server needs that is NAME, and this process takes its certificate."""
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
         "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME},IP:127.0.0.1"], check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return context


def named(url: str) -> str:
    return url.replace("127.0.0.1", NAME)


# What goes by a proxy


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_http_goes_by_the_proxy_which_resolves_the_name(
    variable: str, web: FaultyServer, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, proxy.url)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    url = named(web.put("folder/a disk.raw", CONTENT)).replace(" ", "%20") + "?signature=a%2Fb"
    source = open_location(url)
    assert_same_bytes(source.read_at(MIB - 1, MIB), CONTENT[MIB - 1 : 2 * MIB - 1])
    assert len(proxy.log) == len(web.log) > 0
    assert {asked.target for asked in proxy.log} == {url}
    assert {request.path for request in web.log} == {"/folder/a%20disk.raw?signature=a%2Fb"}
    assert {request.headers["host"] for request in web.log} == {url.split("/")[2]}


@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "ALL_PROXY"])
def test_https_goes_through_the_proxy_and_certificates_are_checked_for_the_name(
    variable: str, proxy: ForwardProxy, secure: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, proxy.url.replace("//", "//CANARY-user:CANARY-word@"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    proxy.credentials = ("CANARY-user", "CANARY-word")
    with FaultyServer(tls=secure) as server:
        url = named(server.put("disk.raw", CONTENT))
        source = open_location(url + "?signature=CANARY")
        assert_same_bytes(source.read_at(MIB - 1, MIB), CONTENT[MIB - 1 : 2 * MIB - 1])
        place = url.split("/")[2]
        # The proxy learns the host, and nothing else; the server learns nothing of the proxy.
        assert {(asked.method, asked.target) for asked in proxy.log} == {("CONNECT", place)}
        assert not any("proxy" in name for request in server.log for name in request.headers)
        proxy.names["other.example"] = "127.0.0.1"
        with pytest.raises(SourceError, match="certificate is not accepted"):
            open_location(url.replace(NAME, "other.example"))
        assert {request.path for request in server.log} == {"/disk.raw?signature=CANARY"}


def test_a_proxy_may_speak_tls_itself(
    web: FaultyServer, secure: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ForwardProxy({NAME: "127.0.0.1"}, tls=secure) as proxy, FaultyServer(tls=secure) as server:
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        for url in (web.put("disk.raw", CONTENT), server.put("disk.raw", CONTENT)):
            assert_same_bytes(open_location(named(url)).read_at(MIB, 100), CONTENT[MIB : MIB + 100])
        assert {asked.method for asked in proxy.log} == {"GET", "CONNECT"}
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(SourceError, match=r"certificate of the proxy 127\.0\.0\.1:\d+ of ALL_PROXY is not acc"):
            open_location(named(web.endpoint) + "/disk.raw", HASTY)


@pytest.mark.parametrize("exempt", ["127.0.0.1", "*", "other.example, 127.0.0.1", "127.0.0.0/8"])
def test_what_no_proxy_names_is_reached_directly(
    exempt: str, web: FaultyServer, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("NO_PROXY", exempt)
    assert open_location(web.put("disk.raw", CONTENT)).read_at(MIB, 100) == CONTENT[MIB : MIB + 100]
    assert proxy.log == []
    monkeypatch.setenv("NO_PROXY", "other.example")
    assert open_location(web.put("disk.raw", CONTENT)).read_at(MIB, 100) == CONTENT[MIB : MIB + 100]
    assert proxy.log


def test_redirects_stay_within_the_host_by_a_proxy_too(
    web: FaultyServer, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    web.put("real.raw", CONTENT)
    web.redirects["disk.raw"] = (302, "/real.raw")
    web.redirects["away.raw"] = (302, "http://169.254.169.254/latest/meta-data")
    assert open_location(named(web.endpoint) + "/disk.raw").read_at(MIB, 100) == CONTENT[MIB : MIB + 100]
    with pytest.raises(UnsafeReference, match="redirects to"):
        open_location(named(web.endpoint) + "/away.raw")
    assert not any("169.254" in asked.target for asked in proxy.log)


def test_the_s3_client_takes_proxies_from_the_environment_by_itself(
    aws: S3Server, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = aws.put("proxied.raw", CONTENT)
    # Clients are kept, with their proxies, so that this needs a process of its own.
    script = (
        "import sys; from diskfs.sources.locate import open_location;"
        "sys.stdout.buffer.write(open_location(sys.argv[1]).read_at(0, 100))"
    )
    for exempt, used in (("other.example", True), ("127.0.0.1,localhost", False)):
        proxy.log.clear()
        environment = {**os.environ, "HTTP_PROXY": proxy.url, "NO_PROXY": exempt, "PYTHONPATH": ":".join(sys.path)}
        result = subprocess.run([sys.executable, "-c", script, url], env=environment, capture_output=True, check=True)
        assert result.stdout == CONTENT[:100]
        assert bool(proxy.log) is used
        assert all("/images/proxied.raw" in asked.target for asked in proxy.log)


# What a proxy refuses, and what is shown of it


def test_user_and_password_reach_the_proxy_alone(
    web: FaultyServer, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    proxy.credentials = ("us@er", "wörd:CANARY")
    url = named(web.put("disk.raw", CONTENT))
    monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//us%40er:w%C3%B6rd:CANARY@"))
    source = open_location(url)
    assert source.read_at(MIB, 16) == CONTENT[MIB : MIB + 16]
    assert not any("proxy" in name for request in web.log for name in request.headers)
    chosen = proxy_for("http", NAME, 80, "disk")
    assert "CANARY" not in f"{source.name} {chosen} {chosen!r} {caplog.text}"


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (407, AccessDenied, "the proxy .*asks for a user and password"),
        (403, AccessDenied, "403"),
        (502, SourceError, "answered 502.*given up after 1 s"),
    ],
)
def test_refusals_of_a_proxy_are_told_apart_and_show_no_secret(  # noqa: PLR0917 - parameters and fixtures
    scheme: str, status: int, error: type[Exception], words: str, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy.url.replace("//", "//user:CANARY@"))
    proxy.refusal = status
    with pytest.raises(error, match=words) as caught:
        open_location(f"{scheme}://{NAME}/disk.raw?signature=CANARY", HASTY)
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_not_there_is_named(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{unused.getsockname()[1]}"
        # Without a scheme, it is http.
        monkeypatch.setenv(f"{scheme}_proxy", f"user:CANARY@{place}")
        with pytest.raises(
            SourceError, match=rf"the proxy {place} of {scheme.upper()}_PROXY cannot be.*efused"
        ) as caught:
            open_location(f"{scheme}://{NAME}/disk.raw", HASTY)
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    "value", ["http://", "http://CANARY@", "http://CANARY@h:x", "http://a CANARY", "http://[CANARY"]
)
def test_what_is_no_proxy_is_refused_without_showing_it(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", value)
    with pytest.raises(SourceError, match="HTTP_PROXY is no URL of a proxy") as caught:
        open_location(f"http://{NAME}/disk.raw")
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize("kind", ["socks5", "socks5h", "socks4", "ftp"])
def test_other_kinds_of_proxies_are_refused_by_name(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", f"{kind}://user:CANARY@127.0.0.1:1080")
    with pytest.raises(UnsupportedFeature, match=f"ALL_PROXY names a proxy of the kind {kind};") as caught:
        open_location(f"http://{NAME}/disk.raw")
    assert "CANARY" not in str(caught.value)


# Addresses that are not public


@pytest.mark.parametrize("address", ["169.254.169.254", "[fe80::1]", "2852039166", "0xa9fea9fe", "127.1", "0"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_addresses_are_checked_as_without_a_proxy(
    scheme: str, address: str, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy.url)
    with pytest.raises(UnsafeReference, match="not public"):
        open_location(f"{scheme}://{address}/latest/meta-data")
    assert proxy.log == []


def test_a_name_known_here_to_be_private_is_refused(
    web: FaultyServer, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy.url)
    real = socket.getaddrinfo

    def answer(host: str, port: object, *rest: object, **more: object) -> object:
        if host == NAME and not more.get("flags"):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.1.2.3", 80))]
        return real(host, port, *rest, **more)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    url = named(web.put("disk.raw", CONTENT))
    with pytest.raises(UnsafeReference, match=r"has the address 10\.1\.2\.3, which is not public"):
        open_location(url)
    assert proxy.log == []
    source = open_location(url, RemoteOptions(allow_private=True))
    assert source.read_at(MIB, 16) == CONTENT[MIB : MIB + 16]


def test_a_name_server_that_does_not_answer_holds_up_nothing(
    web: FaultyServer, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy.url)
    monkeypatch.setattr(clients, "LOOKUP_TIMEOUT", 0.1)
    real, over = socket.getaddrinfo, threading.Event()

    def answer(host: str, port: object, *rest: object, **more: object) -> object:
        if host == NAME and not more.get("flags"):
            over.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return real(host, port, *rest, **more)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    source = open_location(named(web.put("disk.raw", CONTENT)))
    assert source.read_at(MIB, 16) == CONTENT[MIB : MIB + 16]
    over.set()


# The environment


@pytest.mark.parametrize(
    ("environment", "scheme", "variable"),
    [
        ({}, "http", None),
        ({"HTTP_PROXY": "http://1.2.3.4:1"}, "http", "HTTP_PROXY"),
        ({"HTTP_PROXY": "http://1.2.3.4:1"}, "https", None),
        ({"HTTP_PROXY": "http://1.2.3.4:1", "ALL_PROXY": "http://1.2.3.4:2"}, "https", "ALL_PROXY"),
        ({"HTTPS_PROXY": "http://1.2.3.4:1", "ALL_PROXY": "http://1.2.3.4:2"}, "https", "HTTPS_PROXY"),
        ({"http_proxy": "", "HTTP_PROXY": "http://1.2.3.4:1"}, "http", None),
        # A web server's script gets the visitor's "Proxy:" header under this name (CVE-2016-1000110).
        ({"HTTP_PROXY": "http://1.2.3.4:1", "REQUEST_METHOD": "GET"}, "http", None),
        ({"ALL_PROXY": "http://1.2.3.4:1", "no_proxy": "h.example"}, "http", None),
        ({"ALL_PROXY": "http://1.2.3.4:1", "no_proxy": "g.example"}, "http", "ALL_PROXY"),
    ],
)
def test_which_variable_counts(
    environment: dict[str, str], scheme: str, variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    chosen = proxy_for(scheme, "h.example", 80, "disk")
    assert (chosen and chosen.variable) == variable


def test_small_letters_count_first_and_ports_have_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://big.example:1")
    for value, url in (
        ("http://small.example", "http://small.example:80"),
        ("https://small.example/", "https://small.example:443"),
        ("//small.example:3128", "http://small.example:3128"),
        ("small.example:3128", "http://small.example:3128"),
        ("http://[::1]:3128", "http://[::1]:3128"),
    ):
        monkeypatch.setenv("http_proxy", value)
        chosen = proxy_for("http", "h.example", 80, "disk")
        assert chosen is not None
        assert chosen.url == url


@pytest.mark.parametrize("host", ["a.example", "b.a.example", "ba.example", "A.Example", "10.1.2.3", "localhost"])
@pytest.mark.parametrize(
    "no_proxy",
    ["", "*", "a.example", ".a.example", "A.EXAMPLE", "x.example, a.example", "example", "10.1.2.3", "1.2.3",
     "localhost", "a.example:80", "a.example:81", "b.a.example"],
)  # fmt: skip
def test_hosts_are_exempt_as_the_standard_library_has_it(host: str, no_proxy: str) -> None:
    expected = bool(proxy_bypass(f"{host}:80", {"no": no_proxy}))
    if no_proxy == "1.2.3":
        # The library takes the end of an address for a domain.
        expected = False
    assert is_exempt(host, 80, no_proxy) is expected


@pytest.mark.parametrize(
    ("host", "no_proxy", "expected"),
    [
        # As curl has it since 7.86: networks, and spaces between entries.
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "10.0.0.0/99", False),
        ("a.example", "10.0.0.0/8", False),
        ("fd00::1", "fd00::/8", True),
        ("::1", "::1", True),
        ("::1", "[::1]", True),
        ("::1", "[::1]:80", True),
        ("::1", "[::1]:81", False),
        ("::1", "0:0:0:0:0:0:0:1", True),
        ("a.example", "x.example a.example", True),
        ("a.example.", "a.example", True),
        ("a.example", "a.example.", True),
        ("b.a.example", "*.a.example", True),
        ("a.example", "x.example,*", True),
    ],
)
def test_hosts_that_are_exempt(host: str, no_proxy: str, expected: bool) -> None:
    assert is_exempt(host, 80, no_proxy) is expected
