"""The generated sections of the documents: the results that each is made from, and its figure."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from benchmarks.report import figures
from benchmarks.report.markdown import Sources
from benchmarks.report.pictures import pictures_figure, thumbnail_files


@dataclass(frozen=True, kw_only=True)
class Section:
    """The part of a document between `<!-- name:begin -->` and `<!-- name:end -->`, and its template."""

    name: str
    kinds: tuple[str, ...]
    """Required kinds of results."""
    optional_kinds: tuple[str, ...] = ()
    figure: str = ""
    """File name of the figure, where there is one."""
    draw: Callable[[Sources], Figure] | None = None
    files: Callable[[Sources], dict[str, bytes]] | None = None
    """Further files next to the figure, by name."""

    @property
    def markers(self) -> tuple[str, str]:
        """The two lines of the document that enclose the section."""
        return f"<!-- {self.name}:begin -->", f"<!-- {self.name}:end -->"


SECTIONS = (
    Section(name="headline", kinds=("accuracy_quick", "session", "http")),
    Section(name="results", kinds=("session", "http"), figure="latency.png", draw=figures.models_figure),
    Section(name="accuracy", kinds=("accuracy_quick",), optional_kinds=("accuracy_notebook", "training")),
    Section(name="peers", kinds=("peers",), figure="peers.png", draw=figures.peers_figure),
    Section(
        name="pareto",
        kinds=("pareto",),
        optional_kinds=("accuracy_ensemble",),
        figure="pareto.png",
        draw=figures.pareto_figure,
        files=figures.pareto_csv,
    ),
    Section(name="evidence", kinds=("evidence",), figure="robustness.png", draw=figures.evidence_figure),
    Section(
        name="pictures",
        kinds=("pictures",),
        figure="pictures/all.png",
        draw=pictures_figure,
        files=thumbnail_files,
    ),
    Section(name="scenarios", kinds=("scenarios",)),
    Section(name="cascade", kinds=("cascade",)),
    Section(name="score", kinds=("score",)),
    Section(name="loop", kinds=("loop",)),
    Section(name="capacity", kinds=("http",)),
    Section(name="overload", kinds=("overload",), figure="overload.png", draw=figures.overload_figure),
    Section(name="switches", kinds=("switches",)),
    Section(name="cluster", kinds=("cluster",)),
    Section(
        name="autoscaling",
        kinds=("autoscaling",),
        figure="autoscaling.png",
        draw=figures.autoscaling_figure,
    ),
    Section(name="advise", kinds=("advise",)),
    Section(name="sequential", kinds=("sequential",)),
    Section(name="decisions", kinds=("decisions",)),
    Section(name="soak", kinds=("soak",)),
    Section(name="profile", kinds=("profile",)),
    Section(name="overhead", kinds=("overhead",)),
    Section(name="footprint", kinds=("footprint",)),
    Section(name="perf-analyzer", kinds=("perf_analyzer",)),
    Section(name="paper", kinds=("reproduction",), figure="paper.png", draw=figures.paper_figure),
)
