"""Section `footprint`: start-up time, memory and idle CPU of the service."""

from benchmarks.report.markdown import measured, table
from benchmarks.report.sections import Section, Sources


def footprint_section(sources: Sources, _: str) -> str:
    """Return the Markdown for a result of `distillery-bench footprint`: a row for each executor."""
    source = sources["footprint"]
    lines = [
        [
            "executor",
            "start to ready",
            "memory of an API process",
            "of all processes",
            "idle CPU of all processes",
        ],
        *(
            [
                row["executor"],
                f"{row['start_to_ready_s']:.2f} s",
                f"{row['pss_per_api_process_mib']:.0f} MiB",
                f"{row['pss_of_everything_mib']:.0f} MiB",
                f"{row['idle_cpu_of_a_core']:.2%} of a core",
            ]
            for row in source.data["rows"]
        ),
    ]
    note = (
        f"{len(source.data['models'])} models, {source.data['rows'][0]['api_processes']} API processes; memory is the "
        "proportional set size: a page that n processes share counts as 1/n in each."
    )
    return "\n\n".join([table(lines), note, measured("footprint", source)])


SECTION = Section(name="footprint", kinds=("footprint",), to_markdown=footprint_section)
