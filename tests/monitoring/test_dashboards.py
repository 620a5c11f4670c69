"""The dashboards are generated, obey the rules of Grafana's dashboard-linter, and are valid by Grafana's own types.

https://github.com/grafana/dashboard-linter/blob/main/docs/index.md
"""

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import yaml

from tests.monitoring.description import ALERTS, DOCKER, MONITORING, RULES, module

DASHBOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in (DOCKER / "grafana/dashboards").glob("*.json")
}
PANELS = [panel for dashboard in DASHBOARDS.values() for panel in dashboard["panels"]]
WITH_DATA = ("distillation", "service")
TARGETS = {
    f"{name} {panel['title']} {target['refId']}": target["expr"]
    for name in WITH_DATA
    for panel in DASHBOARDS[name]["panels"]
    for target in panel.get("targets", ())
}
UNITS = {"none", "short", "percentunit", "s", "ops", "reqps", "bytes", "decbytes", "currencyUSD"}
"""Of the linter's list, those used here."""
OF_ALL_INSTANCES = re.compile(r"job_model:|slo:|ALERTS$")
"""Series without the label `instance`: they are recorded for a job, whose objectives are not those of an instance."""
TYPESCRIPT = "typescript@5.9.3"


def selectors(expression: str) -> Iterator[tuple[str, str, str]]:
    """Every selector of an expression: name, matchers, range."""
    for found in re.finditer(
        r"\b((?:[a-z_]+:)?distillery_[\w:]+|ALERTS)(\{[^}]*\})?(\[[^\]]+\])?", expression
    ):
        yield found[1], found[2] or "", found[3] or ""


def substituted(expression: str) -> str:
    """The expression as Grafana sends it with everything chosen."""
    for name in ("job", "instance", "model"):
        expression = expression.replace(f"${name}", ".+")
    return expression.replace("$__rate_interval", "1m").replace("$price", "0.04")


@pytest.fixture(params=sorted(DASHBOARDS))
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    return DASHBOARDS[request.param]


@pytest.fixture(params=WITH_DATA)
def variables(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in DASHBOARDS[request.param]["templating"]["list"]}


@pytest.mark.parametrize("name", ["rules.yml", *(f"{name}.json" for name in DASHBOARDS)])
def test_a_generated_file_is_up_to_date(name: str) -> None:
    (found,) = [content for path, content in module("generate").files().items() if path.name == name]
    (path,) = DOCKER.rglob(name)
    assert path.read_text() == found


def test_the_generator_reports_files_that_are_out_of_date(tmp_path: Path) -> None:
    generate = [sys.executable, MONITORING / "generate.py", "--check"]
    assert subprocess.run(generate, capture_output=True, check=False).returncode == 0
    code = (
        f"import sys; sys.path.insert(0, {str(MONITORING)!r}); sys.argv.append('--check'); import generate, pathlib\n"
        f"generate.files = lambda: {{pathlib.Path({str(tmp_path / 'old')!r}): 'new'}}; sys.exit(generate.main())"
    )
    (tmp_path / "old").write_text("old")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert f"out of date: {tmp_path / 'old'}" in run.stderr


def test_panels_fill_the_grid_without_overlap(dashboard: dict[str, Any]) -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        taken = set(itertools.product(columns, range(place["y"], place["y"] + place["h"])))
        assert not taken & cells, panel["title"]
        cells |= taken
    width, height = max(x for x, _ in cells) + 1, max(y for _, y in cells) + 1
    assert width == 24
    assert len(cells) == width * height  # no holes


def test_every_panel_has_a_title_a_description_and_a_unique_id(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert all(panel["title"] and (panel["type"] == "row" or panel["description"]) for panel in panels)
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_data_source_job_and_instance_are_variables(variables: dict[str, dict[str, Any]]) -> None:
    """Rules template-datasource, template-job, template-instance, template-on-time-change-reload."""
    source = variables["datasource"]
    assert (source["type"], source["query"], source["label"]) == ("datasource", "prometheus", "Data source")
    for name in ("job", "instance", "model"):
        one = variables[name]
        assert (one["type"], one["label"], one["refresh"]) == ("query", name.title(), 2)
        assert (one["multi"], one["includeAll"], one["allValue"]) == (True, True, ".+")
        assert one["datasource"]["uid"] == "${datasource}"
        assert re.fullmatch(
            rf"label_values\(distillery_model_info(\{{.*\}})?, {name}\)", one["query"]["query"]
        )


def test_dashboards_cannot_be_edited(dashboard: dict[str, Any]) -> None:
    """Rule uneditable-dashboard: a change would be lost at the next start."""
    assert dashboard["editable"] is False


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_has_queries_of_the_data_source_and_a_unit(panel: dict[str, Any]) -> None:
    """Rules panel-datasource, panel-no-targets, panel-units."""
    if panel["type"] in ("row", "text"):
        return
    assert panel["targets"]
    assert {one["datasource"]["uid"] for one in (panel, *panel["targets"])} == {"${datasource}"}
    units = {panel["fieldConfig"]["defaults"]["unit"]}
    for override in panel["fieldConfig"]["overrides"]:
        units |= {one["value"] for one in override["properties"] if one["id"] == "unit"}
    assert units <= UNITS


@pytest.mark.parametrize("expression", TARGETS.values(), ids=TARGETS.keys())
def test_a_query_is_about_the_chosen_series(expression: str) -> None:
    """Rules target-job, target-instance, target-rate-interval, target-counter-agg."""
    found = list(selectors(expression))
    assert found
    for name, matchers, window in found:
        assert 'job=~"$job"' in matchers, name
        assert ('instance=~"$instance"' in matchers) is not bool(OF_ALL_INSTANCES.match(name)), name
        assert window in ("", "[$__rate_interval]"), name
        assert bool(window) is name.endswith(("_total", "_bucket", "_count", "_sum")), name
    assert len(re.findall(r"(?:rate|increase)\(", expression)) == expression.count("[$__rate_interval]")


@pytest.mark.prometheus
@pytest.mark.skipif(not which("promtool"), reason="no promtool: make system installs it")
def test_every_query_is_valid(tmp_path: Path) -> None:
    """Rules target-promql, template-label-promql."""
    expressions = [substituted(expression) for expression in TARGETS.values()]
    rules = [{"record": f"query:{number}", "expr": expr} for number, expr in enumerate(expressions)]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    check = ["promtool", "check", "rules", "queries.yml"]
    run = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert f"SUCCESS: {len(expressions)} rules found" in run.stdout


def test_the_default_data_source_is_the_provisioned_one(variables: dict[str, dict[str, Any]]) -> None:
    provisioned = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yml").read_text())
    (source,) = provisioned["datasources"]
    assert variables["datasource"]["current"]["value"] == source["uid"]
    assert variables["datasource"]["current"]["text"] == source["name"]


def test_every_recorded_rule_is_used() -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    expressions = [*TARGETS.values(), *(rule["expr"] for rule in RULES)]
    used = {name for expression in expressions for name, _, _ in selectors(expression) if ":" in name}
    shown_by_speedup = {  # for dashboards and alerts of the user
        "job_model:distillery_requests:rate5m",
        "job_model:distillery_images:rate5m",
        "job_model:distillery_inference_seconds_per_image:mean5m",
        "job_model:distillery_request_duration_seconds:quantile5m",
    }
    assert used == recorded - shown_by_speedup
    assert shown_by_speedup <= recorded


def test_every_alert_has_a_runbook() -> None:
    runbooks = module("panels").runbooks()
    assert list(runbooks) == list(
        dict.fromkeys(rule["alert"] for rule in ALERTS if rule["alert"] in runbooks)
    )
    assert set(runbooks) == {rule["alert"] for rule in ALERTS}
    assert all(len(text) > 100 for text in runbooks.values())
    for rule in ALERTS:
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"


def test_links_lead_to_the_runbook_that_they_name() -> None:
    titles = {f"panel-{panel['id']}": panel["title"] for panel in DASHBOARDS["runbooks"]["panels"]}
    links = [link for panel in PANELS for link in panel.get("links", ())]
    assert {link["title"].removeprefix("Runbook: ") for link in links} == {*titles.values()} - {
        "DistilleryDown"
    }
    for link in links:
        place = link["url"].removeprefix(f"/d/{DASHBOARDS['runbooks']['uid']}?viewPanel=")
        assert link["title"] == f"Runbook: {titles[place]}"


@pytest.mark.slow
@pytest.mark.skipif(not which("npm"), reason="no npm, which brings Grafana's own types")
def test_grafanas_types_accept_the_dashboards(tmp_path: Path) -> None:
    """Compile them as typed literals, with the types of the Grafana version in compose.yaml."""
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    version = compose["services"]["grafana"]["image"].removeprefix("grafana/grafana:")
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(tmp_path)]
    subprocess.run([*install, f"@grafana/schema@{version}", TYPESCRIPT], check=True, capture_output=True)
    types = (DOCKER / "grafana/dashboard.types.ts").read_text()

    def complaints(*dashboards: str) -> str:
        literals = [
            f"export const dashboard{index}: OurDashboard = {one};\n" for index, one in enumerate(dashboards)
        ]
        source = tmp_path / "dashboard.ts"
        source.write_text(types + "\n" + "".join(literals))
        flags = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022"]
        compiler = [str(tmp_path / "node_modules/.bin/tsc"), *flags, str(source)]
        return subprocess.run(compiler, cwd=tmp_path, capture_output=True, text=True, check=False).stdout

    written = [json.dumps(dashboard, indent=1) for dashboard in DASHBOARDS.values()]
    # the check detects errors
    wrong = json.dumps(DASHBOARDS["service"], indent=1)
    found = complaints(*written, wrong.replace('"legend"', '"legned"'), wrong.replace('"bottom"', '"buttom"'))
    assert "legned" in found
    assert "buttom" in found
    assert all(f"dashboard{index}" not in found for index in range(len(written)))
    assert complaints(*written) == ""
