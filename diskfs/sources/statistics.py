"""What reading remote sources has cost this process so far."""

import threading
from dataclasses import asdict, dataclass, field


@dataclass(slots=True)
class _Counts:
    requests: int = 0
    bytes_fetched: int = 0
    cache_hits: int = 0
    stored_hits: int = 0
    retries: int = 0


@dataclass(slots=True)
class Statistics:
    """Counts since the start: requests sent, bytes received, blocks found in memory and in the cache's folder, tries
    after the first. Threads share it.
    """

    _counts: _Counts = field(default_factory=_Counts)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self, *, requests: int = 0, bytes_fetched: int = 0, cache_hits: int = 0, stored_hits: int = 0, retries: int = 0
    ) -> None:
        """Count what has happened."""
        with self._lock:
            counts = self._counts
            counts.requests += requests
            counts.bytes_fetched += bytes_fetched
            counts.cache_hits += cache_hits
            counts.stored_hits += stored_hits
            counts.retries += retries

    def counted(self) -> dict[str, int]:
        """Return the counts by name."""
        with self._lock:
            return asdict(self._counts)

    def shown(self) -> dict[str, dict[str, int]]:
        """Return the counts under the key `remote`, for a JSON document; nothing if no request was sent."""
        counts = self.counted()
        return {"remote": counts} if counts["requests"] else {}


STATISTICS = Statistics()
"""Those of this process."""
