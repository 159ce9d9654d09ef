"""The report as a page, opened in a headless Chromium that reaches nothing but this machine."""

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from diskfs.errors import SinkError
from diskfs.preflight.drawing import MIN_WIDTH, WIDTH, draw_disk
from diskfs.preflight.page import render_page, write_page
from tests.fuse.mounting import diskfs
from tests.preflight.checking import MIB, disk, qemu_image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<script src=//evil.example/x.js></script><img src=x onerror=alert(1)>\"'&"
TIMEOUT = 120


def report(**changes: Any) -> dict[str, Any]:
    """A report of the shape that diskfs.preflight.report makes, with every name hostile."""
    partition = {"number": 1, "offset": MIB, "size": 900 * MIB, "type": "0x83", "name": HOSTILE, "is_container": False}
    small = {**partition, "number": 2, "offset": 901 * MIB, "size": MIB}
    volume = {
        "name": "disk0p1", "partition": 1, "offset": MIB, "size": 900 * MIB, "filesystem": "ext4", "label": HOSTILE,
        "free": 5 * MIB, "problem": HOSTILE,
    }  # fmt: skip
    drawn = {
        "index": 0, "name": HOSTILE, "format": "vmdk", "variant": "streamOptimized", "virtual_size": 1024 * MIB,
        "scheme": "mbr", "partitions": [partition, small], "volumes": [volume], "findings": [],
    }  # fmt: skip
    rule = {
        "id": "VMIE-FMT-04", "status": "fail", "severity": "error", "title": HOSTILE, "found": HOSTILE,
        "evidence": [HOSTILE, "second line"], "message": HOSTILE, "remedy": HOSTILE,
    }  # fmt: skip
    return {
        "source": HOSTILE, "operation": "import-image", "request": {}, "verdict": "refused",
        "facts": {
            "os": HOSTILE, "kernel": "6.1\x1b[31m\u202e", "architecture": None, "boot_mode": None,
            "boot_mode_reason": "", "license_type": "BYOL", "ena_support": None,
        },
        "disks": [drawn, {**drawn, "index": 1, "error": HOSTILE, "partitions": [], "volumes": []}],
        "changes": [{"where": "/etc/fstab:1", "what": HOSTILE}], "command": f"aws ec2 {HOSTILE}",
        "rules": [
            rule, {**rule, "id": "VMIE-FMT-05", "status": "pass"}, {**rule, "id": "VMIE-LIC-02", "severity": "warning"},
            {**rule, "id": "VMIE-FMT-06", "status": "unknown"}, {**rule, "id": "VMIE-S3-01", "status": "not-checked"},
        ],
        "not_applicable": [],
        **changes,
    }  # fmt: skip


class Structure(HTMLParser):
    """Every start tag with its attributes, and the text of each element by its id."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def count(self, tag: str, **wanted: str) -> int:
        return sum(
            name == tag and all(found.get(key.rstrip("_")) == value for key, value in wanted.items())
            for name, found in self.tags
        )


def browse(page: Path, *options: str) -> str:
    """Open a page in a headless Chromium without any network, and return what it prints."""
    assert CHROMIUM is not None
    result = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-default-apps",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={page.parent / 'profile'}",
            *options, page.as_uri(),
        ],
        capture_output=True, timeout=TIMEOUT, check=False, env={**os.environ, "HOME": str(page.parent)},
    )  # fmt: skip
    return result.stdout.decode()


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: run scripts/setup")


@pytest.fixture(scope="session")
def dom(tmp_path_factory: pytest.TempPathFactory) -> Structure:
    """The document that Chromium makes of a page full of hostile names."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page(report()))
    return Structure(browse(path, "--dump-dom"))


@needs_chromium
def test_the_browser_sees_the_structure_and_nothing_that_the_names_would_add(dom: Structure) -> None:
    assert dom.count("p", id="verdict", class_="verdict refused") == 1
    assert dom.count("figure") == 2
    assert dom.count("svg") == 1
    assert dom.count("rect", class_="volume") == 1
    assert dom.count("rect", class_="free") == 1
    assert dom.count("tr", id="VMIE-FMT-04") == 1
    assert dom.count("section", class_="error") == 1
    assert dom.count("section", class_="warning") == 1
    assert dom.count("section", class_="unknown") == 1
    assert dom.count("details") == 2
    assert dom.count("pre", id="command") == 1
    for tag in ("script", "img", "link", "iframe", "object", "embed", "a", "base", "form"):
        assert dom.count(tag) == 0, tag


@needs_chromium
def test_nothing_refers_to_anywhere(dom: Structure) -> None:
    for tag, attributes in dom.tags:
        assert not {"src", "href", "srcset", "action", "xlink:href", "background", "ping"} & set(attributes), tag
        assert not any(name.startswith("on") for name in attributes), tag


@needs_chromium
def test_no_request_leaves_the_page_even_if_a_name_became_markup(tmp_path: Path) -> None:
    """The policy of the page stops what escaping would have missed: a server that waits for it hears nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        heard: list[object] = []
        waiting = threading.Thread(target=_listen, args=(server, heard), daemon=True)
        waiting.start()
        here = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        leak = f'<img src="{here}.png"><script src="{here}.js"></script><link rel="stylesheet" href="{here}.css">'
        page = tmp_path / "report.html"
        page.write_text(render_page(report()).replace("<h1>", f"{leak}<h1>", 1))
        found = Structure(browse(page, "--dump-dom"))
        assert found.count("img") == 1
        assert heard == []
        free = tmp_path / "free.html"
        free.write_text(f"<!doctype html>{leak}")
        browse(free, "--dump-dom")
        assert heard, "the server would have heard a page without the policy"


def _listen(server: socket.socket, heard: list[object]) -> None:
    try:
        while True:
            connection, address = server.accept()
            heard.append(address)
            connection.close()
    except OSError:
        return


@needs_chromium
def test_a_screenshot_shows_the_disk(tmp_path: Path) -> None:
    page, shot = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(render_page(report()))
    browse(page, f"--screenshot={shot}", "--window-size=600,600")
    assert _has_colour(shot, b"\xa9\xc9\xf5"), "the colour of a volume"


def _has_colour(path: Path, colour: bytes) -> bool:
    """Tell whether a PNG of 8-bit RGB or RGBA without interlacing has a pixel of a colour (ISO/IEC 15948)."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    offset, packed, width, depth = 8, b"", 0, 0
    while offset < len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        body = data[offset + 8 : offset + 8 + length]
        if kind == b"IHDR":
            width, _, bits, colours = struct.unpack_from(">IIBB", body)
            assert bits == 8
            depth = {2: 3, 6: 4}[colours]
        elif kind == b"IDAT":
            packed += body
        offset += length + 12
    raw, stride = zlib.decompress(packed), width * depth
    above = bytearray(stride)
    for start in range(0, len(raw), stride + 1):
        line = bytearray(raw[start + 1 : start + 1 + stride])
        _unfilter(raw[start], line, above, depth)
        if any(line[index : index + 3] == colour for index in range(0, stride, depth)):
            return True
        above = line
    return False


def _unfilter(kind: int, line: bytearray, above: bytearray, depth: int) -> None:
    for index in range(len(line)) if kind else ():
        left = line[index - depth] if index >= depth else 0
        up = above[index]
        corner = above[index - depth] if index >= depth else 0
        guess = left + up - corner
        nearest = min((left, up, corner), key=lambda value: abs(guess - value))
        line[index] = line[index] + (0, left, up, (left + up) // 2, nearest)[kind] & 0xFF


def test_names_are_escaped_and_what_is_not_seen_is_shown() -> None:
    page = render_page(report())
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script src=//evil.example/x.js&gt;" in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert r"6.1\x1b[31m\u202e" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_the_command_writes_the_page_and_replaces_only_its_own(tmp_path: Path) -> None:
    image = disk(tmp_path / "disk.raw", f'label: gpt\nsize=4M,type=L,name="<b>{"x" * 20}"\n', 16 * MIB)
    page = tmp_path / "report.html"
    diskfs("preflight", image, "--html", page, "--quiet", expect=3)
    text = page.read_text()
    write_page(report(), page)
    assert page.read_text() != text
    assert f"&lt;b&gt;{'x' * 20}" in text
    assert "<b>" not in text
    other = qemu_image(tmp_path / "other.vmdk", "vmdk")
    before = other.read_bytes()
    with pytest.raises(SinkError, match=r"other\.vmdk: it is there already.*another name"):
        write_page(report(), other)
    assert other.read_bytes() == before
    assert not [name for name in os.listdir(tmp_path) if "part" in name]


def drawn(*sizes: int, total: int | None = None) -> dict[str, Any]:
    offset, partitions = 0, []
    for number, size in enumerate(sizes, 1):
        partitions.append(
            {"number": number, "offset": offset, "size": size, "type": "0x83", "name": "", "is_container": False}
        )
        offset += size
    return {"virtual_size": total or offset, "partitions": partitions, "volumes": []}


@pytest.mark.parametrize(
    "sizes", [(1,), (1, 1), (1, 10**15), (10**15, 1, 1, 1), (0, 0), (5,) * 23, (1,) * 24, (7,) * 40, (1, 2, 3, 10**6)]
)
def test_boxes_fill_the_bar_and_can_be_seen(sizes: tuple[int, ...]) -> None:
    bar = draw_disk(drawn(*sizes))
    assert bar.hidden == max(len(sizes) - 24, 0)
    assert sum(box.width for box in bar.boxes) == pytest.approx(WIDTH)
    assert all(box.width >= min(MIN_WIDTH, WIDTH / len(bar.boxes)) - 1e-6 for box in bar.boxes)
    for left, right in zip(bar.boxes, bar.boxes[1:], strict=False):
        assert right.x == pytest.approx(left.x + left.width)


def test_boxes_are_to_scale_where_they_can_be() -> None:
    one, two, free = draw_disk(drawn(300, 100, total=600)).boxes
    assert one.width / two.width == pytest.approx(3)
    assert free.kind == "free"
    assert json.dumps([box.title for box in (one, two, free)]).count("partition") == 2
    assert re.match(r"1  \?", one.lines[0])
