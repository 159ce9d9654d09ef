"""A real S3 server on the loopback interface: SeaweedFS, from PyPI, pinned to a version and a digest.

Its telemetry is off, and it listens on 127.0.0.1 alone.
"""

import contextlib
import hashlib
import json
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WEED_VERSION = "4.48"
WEED_SHA256 = "8dc07b173ff9ad6068a601213174f6009cf7e66684e88d87f0fa20da3dbff876"
"""Of the program in the wheel for x86_64."""
ACCESS_KEY = "diskfstestkey"
SECRET_KEY = "diskfs-test-secret-CANARY"
START_TIMEOUT = 60.0


@dataclass
class S3Server:
    """A running server. `environment` is what makes boto3, in this process or another, use it."""

    endpoint: str
    environment: dict[str, str]
    client: Any = field(repr=False)

    def put(self, key: str, data: bytes | Path, bucket: str = "images") -> str:
        """Store an object and return its s3:// location."""
        if isinstance(data, Path):
            self.client.upload_file(str(data), bucket, key)
        else:
            self.client.put_object(Bucket=bucket, Key=key, Body=data)
        return f"s3://{bucket}/{key}"

    def signed_url(self, key: str, bucket: str = "images") -> str:
        """Return a URL that permits GET, and nothing else, for an hour."""
        url: str = self.client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, ExpiresIn=3600)
        return url


def weed() -> Path | None:
    """Return the program, if it is installed and the one that is pinned."""
    path = Path(sys.prefix) / "bin" / "weed"
    if not path.exists():
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WEED_SHA256:
        raise AssertionError(f"{path} has the digest {digest}, and {WEED_VERSION} has {WEED_SHA256}")
    return path


@contextlib.contextmanager
def running(program: Path, folder: Path, *, anonymous: bool = False) -> Iterator[S3Server]:
    """Start the server with an empty bucket `images`, and end it. With `anonymous`, anybody may read it."""
    config = folder / "s3.json"
    identity = {
        "name": "tester",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    identities: list[dict[str, Any]] = [identity]
    if anonymous:
        identities.append({"name": "anonymous", "actions": ["Read:images"]})
    config.write_text(json.dumps({"identities": identities}))
    master, volume, filer, s3 = _free_ports(4)
    command = [
        str(program), "-logtostderr", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-master.telemetry=false", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
        f"-s3.port={s3}", f"-s3.config={config}", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder, env={"HOME": str(folder), "PATH": ""}
        )
    try:
        yield _ready(f"http://127.0.0.1:{s3}", process, folder / "log")
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _ready(endpoint: str, process: "subprocess.Popen[bytes]", log: Path) -> S3Server:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        connect_timeout=2,
        read_timeout=20,
        retries={"total_max_attempts": 1},
    )
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=config,
    )
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        # Volumes are assigned with the first object.
        try:
            client.create_bucket(Bucket="images")
            client.put_object(Bucket="images", Key="first", Body=b"1")
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the server did not start: {error}\n{log.read_text()[-2000:]}") from error
            if "BucketAlready" in str(error):
                with contextlib.suppress(BotoCoreError, ClientError):
                    client.put_object(Bucket="images", Key="first", Body=b"1")
                    break
            time.sleep(0.2)
        else:
            break
    environment = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }
    return S3Server(endpoint, environment, client)


def _free_ports(count: int) -> list[int]:
    """Return ports that are free, and with them those 10,000 above, where the server puts its internal protocol."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20000, 50000)
        with contextlib.ExitStack() as stack:
            try:
                for number in (port, port + 10000):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", number))
            except OSError:
                continue
            found.append(port)
    return found
