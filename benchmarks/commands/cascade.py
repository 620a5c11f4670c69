"""`distillery-bench cascade`: accuracy, escalated share, latency and cost of student, cascade and teacher."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from benchmarks.commands.bench import Bench, LoadSettings
from benchmarks.errors import BenchmarkError
from benchmarks.load.cascades import Members, measure_cascade
from benchmarks.load.http import SERVICE_CPU_LAG_S, cases_of, measure_http, service_cpu
from benchmarks.load.run import choose_tool, describe_tool
from benchmarks.load.workloads import BodyKind, check_answers, service_workload
from benchmarks.results.models import model_facts
from benchmarks.results.ratio import Ratio
from benchmarks.systems.servers import running_service
from distillery import unknown
from serving.model.repository import ModelEntry, load_model, load_repository
from training.data.mnist import Digits, find_mnist, load_test

ROLES = ("student", "cascade", "teacher")


class Cascade(Bench, LoadSettings):
    """Measure a cascade, its student and its teacher.

    Test errors and escalated share over all test digits, which are read once; latency and CPU time in sessions, over
    the same digits; latency, throughput and CPU time of the service. All rounds are interleaved.
    """

    examples = (
        "distillery-bench cascade",
        "distillery-bench cascade --models-dir models-best --rounds 9 --seconds 2",
    )
    limitations = (
        "one pair of networks, each trained with one seed: another pair escalates another share",
        "the load generator runs on the same machine and shares its cores with the service; loopback interface",
        "the load is of MNIST's test digits: traffic that is harder is escalated more often",
    )

    models_dir: Path = Field(Path("models"), description="model repository")
    cascade: str = Field("cascade", description="name of the cascade")
    body: list[BodyKind] = Field(["json", "binary-64"], description="request bodies: one image, 64 images")
    load_digits: PositiveInt = Field(
        1000, le=10_000, description="different test digits in the load over HTTP"
    )
    batches: list[PositiveInt] = Field([1, 64], description="images per run of a session")
    data_dir: Path | None = Field(None, description="folder with the MNIST files; downloaded by default")

    def measure(self) -> dict[str, Any]:
        tool = choose_tool(self.tool)
        entries = self._entries()
        rule = entries["cascade"].manifest.cascade
        assert rule  # noqa: S101 - checked by _entries
        members = Members.of(rule.threshold, entries["student"].content, entries["teacher"].content)
        test = load_test(find_mnist(self.data_dir))
        sessions = measure_cascade(members, test.images.numpy(), batches=self.batches, rounds=self.rounds)
        with running_service(self.models_dir, "--api-servers", "1") as service:
            step = max(1, len(test) // self.load_digits)
            over_http = self._measure_http(service.url, entries, members, test.images[::step].numpy())
        names = {role: entry.name for role, entry in entries.items()}
        return {
            "models": model_facts({entry.name: entry for entry in entries.values()}),
            "names": names,
            "rule": rule.model_dump(),
            "generator": describe_tool(tool),
            "rounds": self.rounds,
            "rows": _accuracy(members, test),
            "sessions": _with_cost(sessions),
            "http": _with_cost(over_http),
        }

    def _entries(self) -> dict[str, ModelEntry]:
        """Return the models by role. Raises `BenchmarkError` if the name is no cascade's, `RepositoryError`."""
        entries = load_repository(self.models_dir)
        if self.cascade not in entries:
            raise BenchmarkError(f"--cascade: {unknown('model', self.cascade, entries)}")
        rule = entries[self.cascade].manifest.cascade
        if rule is None:
            raise BenchmarkError(
                f"--cascade {self.cascade} is a model with a graph; `distillery-export cascade` makes a cascade"
            )
        student, teacher = (
            load_model(self.models_dir / member.name / member.version)
            for member in (rule.student, rule.teacher)
        )
        return {"student": student, "cascade": entries[self.cascade], "teacher": teacher}

    def _measure_http(
        self, url: str, entries: Mapping[str, ModelEntry], members: Members, digits: Any
    ) -> list[dict[str, Any]]:
        """Return the rows of `measure_http`, whose model is the role."""
        workloads = []
        for body in self.body:
            for role, infer in members.roles().items():
                workload = service_workload(url, entries[role].name, body, digits)
                check_answers(workload, infer)
                workloads.append(workload)
        rows = measure_http(
            cases_of(workloads, self.connections),
            rounds=self.rounds,
            seconds=self.seconds,
            tool=self.tool,
            cpu={"service": partial(service_cpu, url)},
            cpu_lag_s=SERVICE_CPU_LAG_S,
        )
        roles = {entry.name: role for role, entry in entries.items()}
        return [row | {"model": roles[row["model"]]} for row in rows]


def _accuracy(members: Members, test: Digits) -> list[dict[str, Any]]:
    """Return the errors of each role on the test digits, and what is escalated."""
    labels = test.labels.numpy()
    found: dict[str, list[Any]] = {role: [] for role in ROLES}
    escalated = []
    for start in range(0, len(test), 256):
        images = test.images[start : start + 256].numpy()
        escalated.append(members.escalated(images))
        for role, infer in members.roles().items():
            found[role].append(infer(images).argmax(axis=1))
    wrong = {role: np.concatenate(digits) != labels for role, digits in found.items()}
    return [
        {
            "model": role,
            "errors": int(wrong[role].sum()),
            "worse": int((wrong[role] & ~wrong["teacher"]).sum()),
            "better": int((~wrong[role] & wrong["teacher"]).sum()),
            "escalated": int(np.concatenate(escalated).sum()) if role == "cascade" else None,
            "digits": len(test),
        }
        for role in ROLES
    ]


def _with_cost(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the share of the teacher's CPU time, taken within each round, to rows that are otherwise alike."""

    def case(row: Mapping[str, Any]) -> list[Any]:
        return [row.get(key) for key in ("batch", "body", "connections")]

    teachers = [row for row in rows if row["model"] == "teacher"]
    for row in rows:
        [teacher] = [one for one in teachers if case(one) == case(row)]
        row["share"] = Ratio.within_rounds(row["rounds"]["cpu_us"], teacher["rounds"]["cpu_us"]).as_json()
    return rows
