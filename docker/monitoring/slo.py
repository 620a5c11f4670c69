"""Service level objectives and their alerts on several windows and burn rates.

https://sre.google/workbook/alerting-on-slos/#6-multiwindow-multi-burn-rate-alerts

Every objective has events and bad events, as rates over five minutes; the share of bad events over a window is that of
their sums. A burn rate is that share divided by what the objective allows: at 1, the error budget of 30 days lasts 30
days.
"""

from typing import NamedTuple

from expressions import RULES, rejected_share

PERIOD = "30d"
"""Of an error budget."""
WINDOWS = ("30m", "1h", "6h")
LONG_WINDOWS = ("3d", PERIOD)
"""Of millions of samples, so they are evaluated less often."""
SLICE_IMAGES = 10
"""Images below which five minutes do not count for the accepted share."""
ACCEPTED_PART = 0.75
"""Of the accepted share of validation digits."""


class Objective(NamedTuple):
    """A service level objective for each model."""

    name: str
    good: float
    """Share of events that are good, at least."""
    what: str
    """A good event, in words."""
    events: str
    bad: str
    severity: str
    """Of alerts on fast burn."""

    @property
    def alert(self) -> str:
        return f"Distillery{self.name.capitalize()}"

    @property
    def budget(self) -> float:
        """The share of events that may be bad."""
        return round(1 - self.good, 6)


class Burn(NamedTuple):
    """A burn rate that raises an alert if it holds over a long window, and over a short one: it goes on."""

    factor: float
    long: str
    short: str
    pages: bool


BURNS = (Burn(14.4, "1h", "5m", True), Burn(6, "6h", "30m", True), Burn(1, "3d", "6h", False))

_IMAGES = "sum by (job, model) (increase(distillery_images_total[5m]))"
_REQUESTS, _DURATION = "distillery_requests_total", "distillery_request_duration_seconds"
_COMPARISONS = "distillery_teacher_comparisons_total"

OBJECTIVES = (
    Objective(
        "availability",
        0.999,
        "responses that are no server error, of those that are no client error",
        RULES.rate(_REQUESTS, 'model!=""', 'status!~"4.."'),
        RULES.rate(_REQUESTS, 'model!=""', 'status=~"5.."'),
        "critical",
    ),
    Objective(
        "latency",
        0.99,
        "responses within 100 ms of the complete request",
        RULES.rate(f"{_DURATION}_count"),
        RULES.rate(f"{_DURATION}_count") + " - " + RULES.rate(f"{_DURATION}_bucket", 'le="0.1"'),
        "critical",
    ),
    Objective(
        "agreement",
        0.98,
        "compared live images to which model and teacher assign the same digit",
        RULES.rate(_COMPARISONS),
        RULES.rate(_COMPARISONS, 'agrees="false"'),
        "warning",
    ),
    Objective(
        "acceptance",
        0.99,
        f"periods of five minutes with {SLICE_IMAGES} images or more in which the share of accepted predictions is at"
        f" least {ACCEPTED_PART:.0%} of that of validation digits",
        f"{_IMAGES} >= bool {SLICE_IMAGES}",
        f"({rejected_share(RULES, '')}) > bool on (job, model)"
        f" (1 - {ACCEPTED_PART} * max by (job, model) (distillery_model_validation_accepted_ratio))"
        f" and on (job, model) {_IMAGES} >= {SLICE_IMAGES}",
        "warning",
    ),
)


def error_ratio(window: str) -> str:
    """Return the name of the recorded share of bad events."""
    return f"slo:distillery_errors:ratio_rate{window}"


def burn_alert(objective: Objective, burn: Burn) -> str:
    """Return the condition of an alert: the burn rate over both windows."""
    selected = f'{{slo="{objective.name}"}}'
    limit = f"{burn.factor} * {objective.budget}"
    return f"{error_ratio(burn.long)}{selected} > {limit} and {error_ratio(burn.short)}{selected} > {limit}"
