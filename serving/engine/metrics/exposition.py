"""The metrics of all processes as text: in the Prometheus text format, or as OpenMetrics, which has exemplars."""

import re
from collections.abc import Iterable, Sequence
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from serving.engine.metrics.exemplars import exemplars
from serving.engine.metrics.series import REQUEST_SECONDS, Metric, Metrics

PLAIN = CONTENT_TYPE_PLAIN_0_0_4
OPENMETRICS = CONTENT_TYPE_LATEST
_COUNTER = re.compile(r"^(# (?:HELP|TYPE) \w+)_total (?=.)", re.MULTILINE)


def content_type(accept: str) -> str:
    """Return the content type for a scraper by its header Accept: OpenMetrics if it is listed."""
    kinds = {kind.partition(";")[0].strip().lower() for kind in accept.split(",")}
    return OPENMETRICS if "application/openmetrics-text" in kinds else PLAIN


class Exposition:
    """The metrics of all processes.

    prometheus_client renders them once, with zeros; a scrape fills in the numbers, which takes a tenth of the time.
    """

    def __init__(self, metrics: Metrics, facts: Sequence[Family] = ()) -> None:
        """`facts` do not change while the service runs."""
        self._metrics = metrics
        exposed = [metric for metric, _ in metrics.totals() if metric.exposed]
        families = [_family_of_zeros(metric) for metric in exposed]
        zeros, rest = _render(families), _render(facts)
        self._templates = {
            PLAIN: (zeros.split(" 0.0\n"), rest),
            OPENMETRICS: (_as_openmetrics(zeros).split(" 0.0\n"), _as_openmetrics(rest) + "# EOF\n"),
        }
        sizes = [prod(metric.shape[:-1]) * _lines(metric) for metric in exposed]
        (index,) = [index for index, metric in enumerate(exposed) if metric.name == REQUEST_SECONDS]
        self._durations, self._lines_per_model = sum(sizes[:index]), _lines(exposed[index])

    def text(self, kind: str = PLAIN) -> str:
        """Return the text with the present numbers, in the format of this content type."""
        exposed = (_in_text(metric, values) for metric, values in self._metrics.totals() if metric.exposed)
        numbers = [*map(floatToGoString, np.concatenate([*exposed]).tolist())]
        if kind == OPENMETRICS:
            for model, bucket, exemplar in exemplars(self._metrics):
                numbers[self._durations + model * self._lines_per_model + bucket] += exemplar
        (*pieces, end), facts = self._templates[kind]
        filled = (f"{piece} {number}\n" for piece, number in zip(pieces, numbers, strict=True))
        return "".join((*filled, end, facts))


def _lines(metric: Metric) -> int:
    """Return the number of lines in the text along the last axis: a histogram has its count as well."""
    return metric.shape[-1] + (metric.kind == "histogram") if metric.shape else 1


def _in_text(metric: Metric, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a metric's numbers in the order of the text; a histogram's are cumulative, then count and sum."""
    if metric.kind == "histogram":
        counts = values[..., :-1].cumsum(axis=-1)
        values = np.concatenate([counts, counts[..., -1:], values[..., -1:]], axis=-1)
    return values.ravel()


def _family_of_zeros(metric: Metric) -> Family:
    labels = list(metric.labels)
    series = product(*metric.labels.values())
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
