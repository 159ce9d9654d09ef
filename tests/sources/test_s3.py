"""Images in S3, read from a real server."""

import hashlib
import os

import pytest

from diskfs.disks.opening import open_source
from diskfs.errors import AccessDenied, SourceChanged, SourceError, SourceNotFound
from diskfs.sources.locate import open_location
from diskfs.sources.locations import RemoteOptions
from tests.helpers import assert_same_bytes
from tests.servers.weed import S3Server

MIB = 1 << 20
CONTENT = os.urandom(3 * MIB + 777)


def test_reads_are_exact_on_both_sides_of_every_block(aws: S3Server) -> None:
    location = aws.put("blocks.raw", CONTENT)
    source = open_location(location)
    assert source.size == len(CONTENT)
    for edge in range(0, len(CONTENT), MIB // 4):
        for offset in (edge - 1, edge, edge + 1):
            for length in (1, 2, 4096, MIB // 4, MIB // 4 + 2, MIB):
                if 0 <= offset <= len(CONTENT) - length:
                    assert_same_bytes(source.read_at(offset, length), CONTENT[offset : offset + length])
    assert_same_bytes(source.read_at(0, len(CONTENT)), CONTENT)
    source.close()


def test_an_empty_object_is_an_empty_disk(aws: S3Server) -> None:
    source = open_location(aws.put("empty.raw", b""))
    assert source.size == 0
    assert source.read_at(0, 0) == b""


def test_a_changed_object_is_refused_and_its_old_version_named(aws: S3Server) -> None:
    location = aws.put("changing.raw", CONTENT)
    source = open_location(location)
    source.read_at(0, 10)
    aws.put("changing.raw", CONTENT[::-1])
    assert source.read_at(0, 10) == CONTENT[:10]
    with pytest.raises(SourceChanged, match=r"images/changing\.raw: the object was changed"):
        source.read_at(2 * MIB, 10)


def test_a_version_that_the_user_names_is_read_whatever_came_after(aws: S3Server) -> None:
    aws.client.create_bucket(Bucket="versions")
    aws.client.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    old = aws.client.put_object(Bucket="versions", Key="v.raw", Body=CONTENT)["VersionId"]
    aws.client.put_object(Bucket="versions", Key="v.raw", Body=CONTENT[::-1])
    source = open_location(f"s3://versions/v.raw?versionId={old}")
    assert_same_bytes(source.read_at(0, source.size), CONTENT)
    newest = open_location("s3://versions/v.raw")
    assert_same_bytes(newest.read_at(0, newest.size), CONTENT[::-1])


def test_keys_are_taken_as_they_are(aws: S3Server) -> None:
    for key in ("a b+c%20d.raw", "f/\u00fc/\U0001f4be.raw", "what?.raw"):
        source = open_location(aws.put(key, key.encode()))
        assert source.read_at(0, source.size) == key.encode()


@pytest.mark.parametrize(
    ("location", "error", "message"),
    [
        ("s3://images/not-there.raw", SourceNotFound, "there is no such object"),
        ("s3://not-there-either/x.raw", SourceNotFound, "there is no such"),
        ("s3://images", SourceError, "names no object"),
        ("s3://images/", SourceError, "names no object"),
        ("s3://-/x", SourceError, "names no object"),
    ],
)
def test_what_is_not_there_is_named(aws: S3Server, location: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_location(location)


def test_wrong_credentials_are_refused_without_naming_them(aws: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    location = aws.put("secret.raw", CONTENT)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "WRONG-CANARY")
    options = RemoteOptions(region="eu-north-1")
    with pytest.raises(AccessDenied, match="credentials are not accepted") as caught:
        open_location(location, options)
    assert "CANARY" not in str(caught.value)


def test_without_credentials_the_message_says_what_to_do(aws: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    location = aws.put("secret.raw", CONTENT)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(AccessDenied, match="--no-sign-request"):
        open_location(location, RemoteOptions(region="eu-west-3"))
    with pytest.raises(AccessDenied, match="AccessDenied"):
        open_location(location, RemoteOptions(region="eu-west-3", sign=False))


def test_a_signed_url_is_read_by_get_alone(aws: S3Server) -> None:
    aws.put("signed.raw", CONTENT)
    with open_source(aws.signed_url("signed.raw")) as opened:
        data = opened.disk(0).image.read_at(0, len(CONTENT))
    assert hashlib.sha256(data).digest() == hashlib.sha256(CONTENT).digest()
    with pytest.raises(AccessDenied, match="denied") as caught:
        open_source(aws.signed_url("signed.raw") + "0")
    assert "X-Amz" not in str(caught.value)
