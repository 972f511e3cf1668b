"""What the server counts, in the text format of Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

__all__ = ["CONTENT_TYPE", "Meter", "Sample", "exposition", "requests"]

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

Sample = tuple[Mapping[str, str], float]
"""Labels and a value."""


class Meter:
    """Counts the requests of one route, and how long they took."""

    __slots__ = ("_buckets", "_statuses", "_sum_s", "labels")

    def __init__(self, method: str, path: str) -> None:
        self.labels = {"method": method, "path": path}
        self._statuses: dict[int, int] = {}
        self._buckets = [0] * (len(_BOUNDS_S) + 1)
        self._sum_s = 0.0

    def count(self, status: int, took_s: float) -> None:
        """Count one request."""
        self._statuses[status] = self._statuses.get(status, 0) + 1
        self._buckets[bisect_left(_BOUNDS_S, took_s)] += 1
        self._sum_s += took_s

    def statuses(self) -> Iterator[Sample]:
        """How many there were of each status."""
        for status, count in sorted(self._statuses.items()):
            yield {**self.labels, "status": str(status)}, count

    def durations(self) -> Iterator[str]:
        """The lines of the histogram."""
        counts = list(accumulate(self._buckets))
        if counts[-1]:
            for bound, count in zip((*map(str, _BOUNDS_S), "+Inf"), counts, strict=True):
                yield _line("qilbee_request_duration_seconds_bucket", {**self.labels, "le": bound}, count)
            yield _line("qilbee_request_duration_seconds_sum", self.labels, self._sum_s)
            yield _line("qilbee_request_duration_seconds_count", self.labels, counts[-1])


def requests(meters: Iterable[Meter]) -> Iterator[str]:
    """The lines about all requests."""
    meters = list(meters)
    counts = (sample for meter in meters for sample in meter.statuses())
    yield from exposition("qilbee_requests_total", "counter", "Requests answered, by route and status.", counts)
    yield from _head("qilbee_request_duration_seconds", "histogram", "How long requests took, by route.")
    for meter in meters:
        yield from meter.durations()


def exposition(name: str, kind: str, help: str, samples: Iterable[Sample]) -> Iterator[str]:
    """The lines of one metric.

    >>> list(exposition("qilbee_up", "gauge", "Whether it is up.", [({"of": "a"}, 1)]))
    ['# HELP qilbee_up Whether it is up.', '# TYPE qilbee_up gauge', 'qilbee_up{of="a"} 1']
    """
    yield from _head(name, kind, help)
    for labels, value in samples:
        yield _line(name, labels, value)


def _head(name: str, kind: str, help: str) -> tuple[str, str]:
    return f"# HELP {name} {help}", f"# TYPE {name} {kind}"


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{shown}}} {_number(value)}" if shown else f"{name} {_number(value)}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
