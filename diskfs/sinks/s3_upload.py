"""One upload to S3: beginning, parts, completing or ending it.

Protocol: Amazon S3 API Reference, CreateMultipartUpload, UploadPart, CompleteMultipartUpload, AbortMultipartUpload,
ListMultipartUploads, PutObject (version 2006-03-01).
"""

import contextlib
import secrets
import threading
import time
from typing import Any

from diskfs.errors import SinkError
from diskfs.s3 import DENIED, Refused, S3Place, Way
from diskfs.sinks.s3_cleaning import Cleaner
from diskfs.sinks.s3_parts import Part, encoded
from diskfs.sinks.s3_records import Record, endpoint_digest, state_folder
from diskfs.sinks.s3_requests import PersistentRequests, UploadCounts

TOKEN = "diskfs-upload"  # noqa: S105 - a name
"""Metadata of an object that says which run has written it: an answer may be lost, and the object be there."""
ARRIVAL = 1.0
"""Seconds in which a request that was sent arrives."""
_CONTENT_TYPE = "application/octet-stream"


class S3Upload:
    """The requests of one upload; those for parts by several threads, the others by one. Raises SinkError."""

    def __init__(self, place: S3Place, way: Way, name: str, *, deadline: float, requester_pays: bool) -> None:
        """Make a client; `deadline` is for how many seconds of failures a request is tried again. Raises SinkError."""
        self._requests = PersistentRequests(way, name, deadline)
        self._name = name
        self._place = place
        self._payer: dict[str, Any] = {"RequestPayer": "requester"} if requester_pays else {}
        self._object: dict[str, Any] = {"Bucket": place.bucket, "Key": place.key, **self._payer}
        self._cleaner = Cleaner(self._requests, place.bucket, self._payer)
        self._token = secrets.token_hex(16)
        self._record: Record | None = None
        self._begun_twice = False
        self._parts: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()

    @property
    def counts(self) -> UploadCounts:
        """What it has cost so far."""
        return self._requests.counts

    @property
    def is_begun(self) -> bool:
        """Whether there is a multipart upload."""
        return self._record is not None

    def clean(self) -> None:
        """End the uploads to this bucket that killed runs have left."""
        self._cleaner.clean(endpoint_digest(self._requests.endpoint))

    def require_absent(self) -> None:
        """Raise SinkError if there is an object of this name, as far as the server tells."""
        if self._head() is not None:
            raise self._requests.exists_error()

    def begin(self) -> None:
        """Begin a multipart upload."""
        known, began = self._cleaner.unfinished(self._place.key)
        record = Record(
            endpoint_digest(self._requests.endpoint), self._place.bucket, self._place.key,
            None if known is None else list(known), began,
        )  # fmt: skip
        record.note(state_folder(), self._token)
        self._record = record
        retries = self.counts.retries
        request = {**self._object, **self._description, "ChecksumAlgorithm": "CRC32C"}
        self._begun_twice = True
        answer = self._requests.require("create_multipart_upload", request, "beginning the upload")
        record.note_id(str(answer["UploadId"]))
        self._begun_twice = self.counts.retries > retries

    def send_part(self, part: Part) -> None:
        """Send a part; the server checks its CRC-32C."""
        checksum = encoded(part.checksum())
        request = {
            **self._upload, "PartNumber": part.number, "ContentLength": part.size, "ChecksumCRC32C": checksum,
        }  # fmt: skip
        answer = self._requests.require("upload_part", request, f"sending part {part.number}", part)
        # Servers that know nothing of checksums say nothing of them.
        if (found := answer.get("ChecksumCRC32C", checksum)) != checksum:
            raise SinkError(
                f"{self._name}: the server has part {part.number} with the checksum {found[:40]}, expected {checksum}"
            )
        with self._lock:
            self._parts[part.number] = {"PartNumber": part.number, "ETag": answer["ETag"], "ChecksumCRC32C": checksum}

    def stop(self) -> None:
        """Send no part any more, and end in the middle of those that are on their way."""
        self._requests.stopping.set()

    def complete(self, size: int, *, replace: bool) -> None:
        """Put the parts together, and make them visible under the name. The server checks all checksums again."""
        parts = [self._parts[number] for number in sorted(self._parts)]
        request = {**self._upload, "MultipartUpload": {"Parts": parts}, "MpuObjectSize": size}
        self._publish("complete_multipart_upload", request, replace=replace)
        self._require_size(size)
        self._end()

    def put(self, part: Part, *, replace: bool) -> None:
        """Store an object that is one part, by one request."""
        request = {
            **self._object, **self._description, "ContentLength": part.size,
            "ChecksumCRC32C": encoded(part.checksum()),
        }  # fmt: skip
        self._publish("put_object", request, replace=replace, part=part)
        self._require_size(part.size)

    def withdraw(self) -> None:
        """Remove the object, if it is still the one that this upload has made."""
        found = self._ours()
        if found is not None:
            version = {"VersionId": found["VersionId"]} if found.get("VersionId") else {}
            self._requests.require("delete_object", {**self._object, **version}, "removing the object")

    def abort(self) -> bool:
        """Remove the parts from the server; False if that could not be made sure of, and is left to the next run."""
        record = self._record
        if record is None:
            return True
        is_clean = False
        try:
            with self._cleaner.hurried(), contextlib.suppress(SinkError, Refused):
                if not record.upload_id:
                    # The request to begin it may have been interrupted, and be on its way still.
                    time.sleep(ARRIVAL)
                is_clean = self._cleaner.end(record)
                if is_clean and self._begun_twice and record.upload_id:
                    is_clean = self._cleaner.end_unknown(record)
        finally:
            self._record = None
            if is_clean:
                record.forget()
            else:
                record.release()
        return is_clean

    def _end(self) -> None:
        """Forget the note, after whatever a repeated request to begin may have left."""
        record, self._record = self._record, None
        assert record is not None
        is_clean = not self._begun_twice
        try:
            if not is_clean:
                with self._cleaner.hurried(), contextlib.suppress(SinkError, Refused):
                    is_clean = self._cleaner.end_unknown(record)
        finally:
            if is_clean:
                record.forget()
            else:
                record.release()

    def _publish(self, operation: str, request: dict[str, Any], *, replace: bool, part: Part | None = None) -> None:
        doing = "completing the upload" if part is None else "writing the object"
        if not replace:
            # Not every server keeps to the condition.
            self.require_absent()
            request = {**request, "IfNoneMatch": "*"}
        retries = self.counts.retries
        try:
            self._requests.call(operation, request, doing, part)
        except Refused as refused:
            # The answer of an earlier try may have been lost, and the object be there.
            if self.counts.retries > retries and self._ours() is not None:
                return
            if refused.status != 501 or replace:
                raise self._requests.error(refused, doing) from refused
            # A server that knows no conditions: what it had a moment ago was no such object.
            del request["IfNoneMatch"]
            self._requests.require(operation, request, doing, part)
        except SinkError:
            if not self._is_there_after_all():
                raise

    def _is_there_after_all(self) -> bool:
        with contextlib.suppress(SinkError):
            return self._ours() is not None
        return False

    def _require_size(self, size: int) -> None:
        found = self._ours()
        if found is not None and found["ContentLength"] != size:
            self.withdraw()
            raise SinkError(
                f"{self._name}: the server made {found['ContentLength']} bytes of the {size} that it was sent; "
                "the object was removed"
            )

    def _ours(self) -> dict[str, Any] | None:
        """Return what the server says of the object, if it is the one that this upload has made."""
        found = self._head()
        return found if found is not None and found.get("Metadata", {}).get(TOKEN) == self._token else None

    def _head(self) -> dict[str, Any] | None:
        doing = "asking whether it exists"
        try:
            return self._requests.call("head_object", self._object, doing)
        except Refused as refused:
            # Whoever may write need not be allowed to list, and is then told 403 of what is not there. And an answer to
            # HEAD has no text: 400 may be expired credentials, which the next request will be told in words.
            if refused.status in {400, 404, 405, 501} or refused.code in DENIED:
                return None
            raise self._requests.error(refused, doing) from refused

    @property
    def _description(self) -> dict[str, Any]:
        return {"ContentType": _CONTENT_TYPE, "Metadata": {TOKEN: self._token}}

    @property
    def _upload(self) -> dict[str, Any]:
        assert self._record is not None
        return {**self._object, "UploadId": self._record.upload_id}
