"""Ending multipart uploads: our own, those of killed runs, and those that a lost answer has hidden from us."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from diskfs.errors import SinkError
from diskfs.s3 import DENIED, Refused
from diskfs.sinks.s3_records import Record, ids_of_others, left_behind, state_folder
from diskfs.sinks.s3_requests import PersistentRequests, server_time

PATIENCE = 15.0
"""Seconds for which ending an upload is tried: the user waits for it after Ctrl-C."""
BEGUN_WITHIN = 180.0
"""Seconds after which a request to begin an upload has certainly arrived or is lost."""
CLOCK = 2.0
"""Seconds by which two times of one server may be wrong: they are whole numbers."""
_ENDING, _LISTING = "ending the upload", "listing unfinished uploads"


class Cleaner:
    """Ends uploads to one bucket. Raises SinkError, Refused."""

    def __init__(self, requests: PersistentRequests, bucket: str, payer: dict[str, Any]) -> None:
        self._requests = requests
        self._bucket = bucket
        self._payer = payer

    @contextlib.contextmanager
    def hurried(self) -> Iterator[None]:
        """Give up sooner than when there is something to be won."""
        deadline = self._requests.deadline
        self._requests.deadline = min(deadline, PATIENCE)
        try:
            yield
        finally:
            self._requests.deadline = deadline

    def clean(self, endpoint: str) -> None:
        """End what killed runs of this user have left; what fails is left to the next run."""
        with self.hurried():
            for record in left_behind(state_folder(), endpoint, self._bucket):
                is_clean = False
                try:
                    with contextlib.suppress(SinkError, Refused):
                        is_clean = self.end(record)
                finally:
                    if is_clean:
                        record.forget()
                    else:
                        record.release()

    def end(self, record: Record) -> bool:
        """End a noted upload; returns whether nothing of it is left."""
        if not record.upload_id:
            return self.end_unknown(record)
        for _ in range(3):
            self._abort(record.key, record.upload_id)
            # A part that was on its way may have come after the end, and is there then.
            if not self._has_parts(record.key, record.upload_id):
                return True
            time.sleep(0.2)
        return False

    def end_unknown(self, record: Record) -> bool:
        """End an upload that was begun, and of which no answer told the name.

        It is one of the same key that was not there before, was begun when ours was, has no parts, and is in no note.
        """
        if record.known is None:
            return True
        now, _ = self.unfinished(record.key)
        if now is None:
            return False
        others = {*record.known, record.upload_id, *ids_of_others(state_folder(), record)}
        first, last = record.began - CLOCK, record.began + BEGUN_WITHIN
        for upload_id, begun in now.items():
            if upload_id not in others and first <= begun <= last and not self._has_parts(record.key, upload_id):
                self._abort(record.key, upload_id)
        return True

    def unfinished(self, key: str) -> tuple[dict[str, float] | None, float]:
        """Return the unfinished uploads of a key and when each was begun, None if the server will not say; and the
        server's time.
        """
        request: dict[str, Any] = {"Bucket": self._bucket, "Prefix": key, **self._payer}
        found: dict[str, float] = {}
        while True:
            try:
                answer = self._requests.call("list_multipart_uploads", request, _LISTING)
            except Refused as refused:
                if refused.of_credentials() or refused.code == "NoSuchBucket":
                    raise self._requests.error(refused, _LISTING) from refused
                return None, time.time()
            for upload in answer.get("Uploads", []):
                if upload.get("Key") == key and upload.get("Initiated") is not None:
                    found[str(upload["UploadId"])] = upload["Initiated"].timestamp()
            # Keys come in order, the key itself before those that go on after it.
            if not answer.get("IsTruncated") or answer.get("NextKeyMarker") != key:
                return found, server_time(answer)
            request["KeyMarker"] = answer["NextKeyMarker"]
            request["UploadIdMarker"] = answer.get("NextUploadIdMarker", "")

    def _abort(self, key: str, upload_id: str) -> None:
        try:
            self._requests.call("abort_multipart_upload", self._named(key, upload_id), _ENDING)
        except Refused as refused:
            if refused.status != 404:
                raise

    def _has_parts(self, key: str, upload_id: str) -> bool:
        request = {**self._named(key, upload_id), "MaxParts": 1}
        try:
            return bool(self._requests.call("list_parts", request, _ENDING).get("Parts"))
        except Refused as refused:
            if refused.status == 404 or refused.code in DENIED:
                return False
            raise

    def _named(self, key: str, upload_id: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": key, "UploadId": upload_id, **self._payer}
