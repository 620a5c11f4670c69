"""Section `accuracy`: errors over seeds, and training against the notebook's own loop."""

from benchmarks.report.markdown import mean_cell, table
from benchmarks.report.sections import Section, Source, Sources
from benchmarks.results.ratio import Ratio


def accuracy_section(sources: Sources, _: str) -> str:
    """Return the Markdown for results of `distillery-bench accuracy` and, where there is one, `training`."""
    sources = dict(sources)
    training = sources.pop("training", None)
    parts = [_accuracy_table(list(sources.values()))] + ([_training_table(training)] if training else [])
    return "\n\n".join(parts)


def _accuracy_table(sources: list[Source]) -> str:
    header = ["recipe", "seeds", "teacher", "student alone", "student distilled", "saved", "distilled, int8"]
    lines = [header]
    for source in sources:
        data = source.data
        rows = [data["test_errors"][name] for name in ("teacher", "student-alone", "student")]
        rows += [data["saved_by_distillation"], data["test_errors"]["student-int8"]]
        seeds = ", ".join(str(seed["seed"]) for seed in data["seeds"])
        cells = (mean_cell(row["mean"], row["interval_95"], row["values"]) for row in rows)
        lines.append([f"[{data['recipe']}]({source.link})", seeds, *cells])
    note = "Test errors of 10,000; mean and 95 % interval (Student's t) where there are several seeds."
    return f"{table(lines)}\n\n{note}"


def _training_table(source: Source) -> str:
    result, data = source.document, source.data
    header = ["", "notebook's own loop", "distillery-train", "speedup"]
    lines = [header]
    for role, name in (
        ("teacher", "an epoch of the teacher"),
        ("student", "an epoch of the distilled student"),
    ):
        row = data["epochs"][role]
        rounds = row["rounds"]
        ratio = Ratio.within_rounds(rounds["ours_s"], rounds["notebook_s"], lower_is_better=True)
        lines.append([name, f"{row['notebook_s']:.1f} s", f"{row['ours_s']:.1f} s", str(ratio)])
    if target := data.get("target"):
        ours = f"{target['ours_s']:.0f} s"
        goal = f"time to a student of {target['validation_accuracy']:.2%}, teacher included"
        schedule, faster = f"{target['notebook_schedule_s']:,.0f} s", f"{target['ratio_to_schedule']:.0f}×"
        lines.append([f"{goal}; its whole schedule, extrapolated from its epochs", schedule, ours, faster])
        if corrected := target["mended_loop"]:
            faster = f"{target['ratio_to_mended_loop']:.1f}×"
            lines.append(
                [f"{goal}; its corrected loop, stopped there", f"{corrected['seconds']:,.0f} s", ours, faster]
            )
    precision = ", bfloat16" if data["bfloat16"] else ""
    machine = (
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores, torch {result['versions']['torch']}"
    )
    note = (
        f"[Measured]({source.link}), interleaved, on {machine}; threads per loop: {data['threads']}; epochs at "
        "batch size 64; speedup of an epoch: the median of the ratios within a round, and their range. There PIL, "
        f"`DataLoader` and Adam, here resident digits and fused AdamW{precision}. 98.18 % is what the notebook reports "
        "for its student; here the student has it on the validation digits."
    )
    return table(lines) + f"\n\n{note}"


SECTION = Section(
    name="accuracy",
    kinds=("accuracy_quick",),
    optional_kinds=("accuracy_notebook", "training"),
    to_markdown=accuracy_section,
)
