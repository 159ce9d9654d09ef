"""Objects that are overwritten while they are read, and credentials that are replaced (promises 1, 8; S1, S7)."""

import os
import random
import re
import threading
import time
from pathlib import Path

import pytest

from diskfs.errors import AccessDenied, SourceChanged
from diskfs.sources.locate import LocatedSource, open_location
from diskfs.sources.locations import RemoteOptions
from tests.servers.faulty import FaultyServer, Request

KIB = 1 << 10
SIZE = 1200 * KIB
TRIALS = 1000
_KEY = re.compile(r"Credential=([^/]+)/")


def version(number: int) -> bytes:
    """Return content of which every 64 bytes tell the version and the place."""
    return b"".join(f"{number:031d} {place:031d} ".encode() for place in range(0, SIZE, 64))


VERSIONS = [version(number) for number in range(4)]


def read_at_random(source: LocatedSource, chance: random.Random, old: bytes) -> int:
    """Read eight places; return how many were read. What is read is of the old version, or nothing is."""
    count = 0
    for _ in range(8):
        offset, length = chance.randrange(SIZE - 70000), chance.choice([64, 4096, 70000])
        try:
            data = source.read_at(offset, length)
        except SourceChanged:
            continue
        assert data == old[offset : offset + length], "bytes of another version"
        count += 1
    return count


@pytest.mark.parametrize("how", ["if-match", "ignored if-match"])
def test_a_thousand_overwritings_mix_no_versions(web: FaultyServer, how: str) -> None:
    """Acceptance 5: overwritten, cut or deleted at any moment of reading, whatever the server makes of If-Match."""
    chance = random.Random(5)
    whole = changed = 0
    for trial in range(TRIALS):
        old, new = chance.sample(range(len(VERSIONS)), 2)
        weak = "W/" if how != "if-match" else ""
        source = open_location(
            web.put("disk.raw", VERSIONS[old], etag=f'{weak}"{trial}-old"'), RemoteOptions(deadline=5)
        )
        moment = chance.randrange(1, 6)
        seen = 0

        def change(
            request: Request, trial: int = trial, new: int = new, weak: str = weak, moment: int = moment
        ) -> None:
            nonlocal seen
            seen += 1
            if seen != moment:
                return
            match trial % 4:
                case 3:
                    del web.objects["disk.raw"]
                case 2:
                    web.put("disk.raw", VERSIONS[new][: SIZE // 2], etag=f'{weak}"{trial}-new"')
                case _:
                    web.put("disk.raw", VERSIONS[new], etag=f'{weak}"{trial}-new"')

        web.choose = change
        count = read_at_random(source, chance, VERSIONS[old])
        whole += count == 8
        changed += count < 8
        source.close()
        web.choose = lambda request: None
        web.log.clear()
    assert changed > TRIALS // 2
    assert whole > 0


@pytest.fixture
def rotating(web: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FaultyServer:
    """A server that takes the two newest access keys, and a profile that has the newest."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    valid: list[str] = []

    def rotate(number: int) -> None:
        valid.append(f"KEY{number}")
        partial = file.with_suffix(".new")
        partial.write_text(f"[default]\naws_access_key_id = {valid[-1]}\naws_secret_access_key = S{number}\n")
        partial.rename(file)

    def denied(request: Request) -> tuple[int, str] | None:
        match = _KEY.search(request.headers.get("authorization", ""))
        if match and match[1] in valid[-2:]:
            return None
        return (400, "ExpiredToken") if len(valid) % 2 else (403, "InvalidAccessKeyId")

    rotate(0)
    web.denied = denied
    web.rotate = rotate  # type: ignore[attr-defined]  # for the tests below
    return web


def test_sixty_rotations_of_credentials_are_no_error(rotating: FaultyServer) -> None:
    data = os.urandom(64 * 1024 * KIB)
    rotating.put("bucket/disk.raw", data)
    options = RemoteOptions(endpoint_url=rotating.endpoint, region="us-east-1")
    source = open_location("s3://bucket/disk.raw", options)
    ended = threading.Event()
    rotations = reads = 0

    def rotate() -> None:
        nonlocal rotations
        while not ended.is_set() and rotations < 60:
            rotations += 1
            rotating.rotate(rotations)  # type: ignore[attr-defined]
            # Long against a request, also where making a client takes a busy machine longer: no read meets two of them.
            before = reads
            time.sleep(0.15)
            while not ended.is_set() and reads < before + 2:
                time.sleep(0.01)

    rotator = threading.Thread(target=rotate)
    rotator.start()
    chance = random.Random(7)
    try:
        while rotator.is_alive():
            offset = chance.randrange(len(data) - 100)
            assert source.read_at(offset, 100) == data[offset : offset + 100]
            reads += 1
            if len(rotating.log) > 150:
                source.close()
                source = open_location("s3://bucket/disk.raw", options)
                rotating.log.clear()
    finally:
        ended.set()
        rotator.join()
    assert rotations == 60


def test_credentials_that_were_revoked_are_denied_and_new_ones_go_on(
    rotating: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(1024 * KIB)
    rotating.put("bucket/disk.raw", data)
    source = open_location("s3://bucket/disk.raw", RemoteOptions(endpoint_url=rotating.endpoint, region="us-east-1"))
    taken = rotating.denied
    rotating.denied = lambda request: (400, "ExpiredToken")
    with pytest.raises(AccessDenied, match="credentials have expired"):
        source.read_at(0, 100)
    rotating.denied = taken
    rotating.rotate(1)  # type: ignore[attr-defined]
    assert source.read_at(0, 100) == data[:100]
