"""The section on other systems, rendered from a result."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.documents.generated import document, keep, render

SERVERS = {
    "inprocess": ("Distillery", {}, [8000.0, 9000.0, 8500.0, 8400.0, 8600.0]),
    "bare-asgi": ("bare ASGI", {"uvicorn": "0.54.0"}, [4000.0, 4500.0, 4400.0, 4300.0, 4400.0]),
    "ray-serve": ("Ray Serve", {"ray": "2.60.0"}, [800.0, 700.0, 750.0, 750.0, 740.0]),
}


def peers_data(connections: tuple[int, ...] = (1, 16)) -> dict[str, Any]:
    rows = [
        {"server": server, "model": "student", "body": "json", "connections": count}
        | {
            "cpu_us": 99.6,
            "requests_per_s": sorted(rates)[2] / (16 / count),
            "p50_ms": count / 2,
            "p99_ms": count * 1.5,
        }
        | {"rounds": {"requests_per_s": rates, "p50_ms": [1.0] * 5}}
        for count in connections
        for server, (_, _, rates) in SERVERS.items()
    ]
    servers = [
        {
            "server": server,
            "title": title,
            "versions": versions,
            "memory_mib": 1234.5,
            "idle_cpu_of_a_core": 0.1,
        }
        for server, (title, versions, _) in SERVERS.items()
    ]
    data = {"models": {"student": {}}, "rounds": 5, "processes": 2, "generator": "wrk 4.1.0"}
    return data | {"limitations": ["made up"], "servers": servers, "rows": rows}


def test_systems_are_listed_fastest_first_with_links_to_their_configuration(tmp_path: Path) -> None:
    readme = document(tmp_path, "peers")
    keep(readme, "peers", peers_data())
    assert render(readme) == 0
    lines = readme.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| system "))
    ours, bare, ray = (line.strip("| ").split(" | ") for line in lines[start + 2 : start + 5])
    assert ours[:2] == ["**Distillery**", "8,500"]
    assert bare == [
        "[bare ASGI](benchmarks/peers/bare_asgi)",
        "4,400",
        "4,000 – 4,500",
        "8.00 ms",
        "24.00 ms",
        "0.50 ms",
        "1.95× (1.93–2.00)",
        "1,234 MiB",
        "100 µs",
    ]
    assert ray[0] == "[Ray Serve](benchmarks/peers/ray_serve)"
    assert ray[6].startswith("11.3× (")
    text = "\n".join(lines)
    assert "Versions: ray 2.60.0, uvicorn 0.54.0." in text
    assert "; medians of 5 rounds; load by wrk 4.1.0; " in text
    assert "Limits: made up." in text


def test_the_figure_is_drawn_and_names_its_source(tmp_path: Path) -> None:
    readme = document(tmp_path, "peers")
    keep(readme, "peers", peers_data())
    assert render(readme) == 0
    with Image.open(readme.parent / "docs/peers.png") as figure:
        assert min(figure.size) > 200
        assert len(set(figure.convert("L").tobytes())) > 50
        assert figure.info["Source"].startswith("peers-")


def test_a_result_with_one_connection_only_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = document(tmp_path, "peers")
    keep(readme, "peers", peers_data(connections=(1,)))
    assert render(readme) == 1
    assert "one connection only; measure again with more" in capsys.readouterr().err
