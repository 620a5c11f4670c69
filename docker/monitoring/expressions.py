"""PromQL that rules and dashboards share: each quantity is written once, for a window and a choice of series.

Rules compute it over five minutes for each job and model (`RULES`), dashboards over Grafana's interval for the jobs,
instances and models that are chosen (`DASHBOARD`). A ratio without traffic is not a number, so such series end instead:
`> 0` and `>= 0` drop them.
"""

from collections.abc import Callable
from typing import NamedTuple

from serving.engine.metrics.series import TEACHER


class Scope(NamedTuple):
    """The series that an expression is about."""

    window: str
    matchers: str
    """Of every selector."""
    models: str
    """Matcher of the models, beside the teacher."""
    job: tuple[str, ...]
    """Label that results keep besides the model."""

    def select(self, metric: str, *matchers: str) -> str:
        """Return a selector."""
        found = ", ".join(filter(None, (self.matchers, *matchers)))
        return f"{metric}{{{found}}}" if found else metric

    def rate(self, metric: str, *matchers: str, by: tuple[str, ...] = ("model",)) -> str:
        """Return the rate of a counter, summed; all models unless `matchers` choose."""
        labels = ", ".join((*self.job, *by))
        return f"sum by ({labels}) (rate({self.select(metric, *matchers)}[{self.window}]))"

    def gauge(self, metric: str, *matchers: str, by: tuple[str, ...] = ("model",), total: str = "sum") -> str:
        """Return the present value of a gauge, summed over the instances."""
        return f"{total} by ({', '.join((*self.job, *by))}) ({self.select(metric, *matchers)})"

    @property
    def on(self) -> str:
        """How a value of the service, or of the teacher, is matched with one of each model."""
        return f"on ({', '.join(self.job)})"


RULES = Scope("5m", "", 'model!=""', ("job",))
DASHBOARD = Scope("$__rate_interval", 'job=~"$job", instance=~"$instance"', 'model=~"$model"', ())
TEACHER_ONLY = f'model="{TEACHER}"'


def seconds_per_image(scope: Scope, models: str) -> str:
    """Return the seconds of `session.run` divided by images."""
    seconds = scope.rate("distillery_inference_duration_seconds_sum", models)
    return f"{seconds} / ({scope.rate('distillery_batch_size_images_sum', models)} > 0)"


def duration_quantile(scope: Scope, quantile: float, models: str, metric: str = "request_duration") -> str:
    """Return a quantile, interpolated within a bucket of the histogram."""
    buckets = scope.rate(f"distillery_{metric}_seconds_bucket", models, by=("model", "le"))
    return f"histogram_quantile({quantile}, {buckets}) >= 0"


def cpu_per_image(scope: Scope, models: str) -> str:
    """Return the CPU time of an image: its part of the model's runs, and of all that is not a run.

    What is not a run (HTTP, decoding, encoding, the kernel) is divided equally among the requests, whatever their
    model, because only the total of the service is known. So are further threads of a run.
    """
    runs = scope.rate("distillery_run_cpu_seconds_total", models)
    cpu = scope.rate("distillery_process_cpu_seconds_total", by=())
    all_runs = scope.rate("distillery_run_cpu_seconds_total", by=())
    requests = scope.rate("distillery_requests_total", models)
    per_request = f"clamp_min({cpu} - {all_runs}, 0) / ({scope.rate('distillery_requests_total', by=())} > 0)"
    images = scope.rate("distillery_images_total", models)
    return f"({runs} + {requests} * {scope.on} group_left () ({per_request})) / ({images} > 0)"


SPEEDUPS: dict[str, Callable[[Scope, str], str]] = {
    "inference per image": seconds_per_image,
    "response p50": lambda scope, models: duration_quantile(scope, 0.5, models),
    "response p99": lambda scope, models: duration_quantile(scope, 0.99, models),
    "CPU time per image": cpu_per_image,
}
"""What a speedup is measured in."""


def speedup(scope: Scope, measure: str, models: str | None = None) -> str:
    """Return the teacher's time divided by the model's; needs traffic on both in the window."""
    time = SPEEDUPS[measure]
    teacher, model = time(scope, TEACHER_ONLY), time(scope, models or scope.models)
    return f"sum by ({', '.join(scope.job)}) ({teacher}) / {scope.on} group_right () ({model}) >= 0"


def rejected_share(scope: Scope, models: str) -> str:
    """Return the share of images whose prediction is not accepted."""
    images = scope.rate("distillery_images_total", models)
    return f"{scope.rate('distillery_rejected_predictions_total', models)} / ({images} > 0)"


def escalated_share(scope: Scope, models: str) -> str:
    """Return the share of images that the teacher of a cascade classified."""
    images = scope.rate("distillery_images_total", models)
    return f"{scope.rate('distillery_escalated_images_total', models)} / ({images} > 0)"


def live_accuracy(scope: Scope, models: str) -> str:
    """Return the share of the images with a label for which the model predicted that digit."""
    correct = scope.rate("distillery_feedback_total", models, 'correct="true"')
    return f"{correct} / ({scope.rate('distillery_feedback_total', models)} > 0)"


def agreement(scope: Scope, models: str) -> str:
    """Return the share of compared live images for which model and teacher predict the same digit."""
    agree = scope.rate("distillery_teacher_comparisons_total", models, 'agrees="true"')
    return f"{agree} / ({scope.rate('distillery_teacher_comparisons_total', models)} > 0)"
