"""The metrics of all processes as text: in the Prometheus text format, or as OpenMetrics, which has exemplars."""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from serving.engine.metrics.exemplars import exemplars
from serving.engine.metrics.series import (
    REQUEST_SECONDS,
    SECONDS,
    SLOT,
    UNKNOWN_MODEL,
    Metric,
    Metrics,
    Slots,
)

PLAIN = CONTENT_TYPE_PLAIN_0_0_4
OPENMETRICS = CONTENT_TYPE_LATEST
_COUNTER = re.compile(r"^(# (?:HELP|TYPE) \w+)_total (?=.)", re.MULTILINE)


def content_type(accept: str) -> str:
    """Return the content type for a scraper by its header Accept: OpenMetrics if it is listed."""
    kinds = {kind.partition(";")[0].strip().lower() for kind in accept.split(",")}
    return OPENMETRICS if "application/openmetrics-text" in kinds else PLAIN


class Exposition:
    """The metrics of all processes.

    prometheus_client renders them with zeros, whenever other versions of models are served; a scrape fills in the
    numbers, which takes a tenth of the time.
    """

    def __init__(
        self,
        metrics: Metrics,
        slots: Callable[[], Slots],
        facts: Callable[[], Iterable[Family]] = tuple,
    ) -> None:
        """`slots` returns those of the versions that have been served, always the same object until they change.

        `facts` returns what changes only with them.
        """
        self._metrics = metrics
        self._slots, self._facts = slots, facts
        self._rendered: Slots | None = None

    def text(self, kind: str = PLAIN) -> str:
        """Return the text with the present numbers, in the format of this content type."""
        slots = self._slots()
        if slots is not self._rendered:
            self._render(slots)
        totals = self._metrics.totals()
        exposed = (_in_text(metric, totals.of(metric.name), series) for metric, series in self._series)
        numbers = [*map(floatToGoString, np.concatenate([*exposed]).tolist())]
        if kind == OPENMETRICS:
            positions = {int(slot): position for position, slot in enumerate(slots.values())}
            for slot, bucket, exemplar in exemplars(self._metrics):
                if slot in positions:
                    line = self._durations + positions[slot] * (len(SECONDS) + 3) + bucket
                    numbers[line] += exemplar
        (*pieces, end), facts = self._templates[kind]
        filled = (f"{piece} {number}\n" for piece, number in zip(pieces, numbers, strict=True))
        return "".join((*filled, end, facts))

    def _render(self, slots: Slots) -> None:
        """Render the text with zeros, for the versions in `slots`."""
        exposed = [metric for metric, _ in self._metrics.totals() if metric.exposed]
        self._series = [(metric, _served(metric, slots)) for metric in exposed]
        families = [_family_of_zeros(metric, slots) for metric in exposed]
        zeros, rest = _render(families), _render(self._facts())
        self._templates = {
            PLAIN: (zeros.split(" 0.0\n"), rest),
            OPENMETRICS: (_as_openmetrics(zeros).split(" 0.0\n"), _as_openmetrics(rest) + "# EOF\n"),
        }
        sizes = [_in_text(metric, np.zeros(metric.shape), series).size for metric, series in self._series]
        names = [metric.name for metric, _ in self._series]
        self._durations = sum(sizes[: names.index(REQUEST_SECONDS)])
        self._rendered = slots


def _served(metric: Metric, slots: Slots) -> list[int] | None:
    """Return the indices of a metric's series along its first axis that are exposed; None: all of them."""
    if SLOT not in metric.labels:
        return None
    unknown = [len(metric.labels[SLOT]) - 1] if UNKNOWN_MODEL in metric.labels[SLOT] else []
    return [*map(int, slots.values()), *unknown]


def _in_text(metric: Metric, values: NDArray[np.float64], series: list[int] | None) -> NDArray[np.float64]:
    """Return a metric's numbers in the order of the text; a histogram's are cumulative, then count and sum."""
    if series is not None:
        values = values[series]
    if metric.kind == "histogram":
        counts = values[..., :-1].cumsum(axis=-1)
        values = np.concatenate([counts, counts[..., -1:], values[..., -1:]], axis=-1)
    return values.ravel()


def _family_of_zeros(metric: Metric, slots: Slots) -> Family:
    labels, series = _label_values(metric, slots)
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=labels)
        buckets = [(bound, 0.0) for bound in (*map(floatToGoString, metric.bounds), "+Inf")]
        for values in series:
            histogram.add_metric(values, buckets, 0.0)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=labels)
    for values in series:
        family.add_metric(values, 0.0)
    return family


def _label_values(metric: Metric, slots: Slots) -> tuple[list[str], Iterator[list[str]]]:
    """Return the names of a metric's labels, and their values for each of its series."""
    if SLOT not in metric.labels:
        return list(metric.labels), map(list, product(*metric.labels.values()))
    _, *others = metric.labels.items()
    versions = list(slots)
    if UNKNOWN_MODEL in metric.labels[SLOT]:
        versions.append((UNKNOWN_MODEL, ""))
    further = product(*(values for _, values in others))
    series = ([*version, *rest] for version, rest in product(versions, further))
    return ["model", "version", *(name for name, _ in others)], series


def _as_openmetrics(text: str) -> str:
    """Return a text in the Prometheus format as OpenMetrics, which has another name for the family of a counter."""
    return _COUNTER.sub(r"\1 ", text)


def _render(families: Iterable[Family]) -> str:
    class Families(Collector):
        def collect(self) -> Iterable[Family]:
            return families

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Families())
    return generate_latest(registry).decode()
