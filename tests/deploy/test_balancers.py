"""nginx and HAProxy accept their configurations in deploy/, which match the service's settings."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from benchmarks.cluster.balancers import DEPLOY, with_servers
from serving.config import ServiceSettings

UPSTREAM = (DEPLOY / "nginx/distillery.conf").read_text()
PROXY = (DEPLOY / "nginx/proxy.conf").read_text()
HAPROXY = (DEPLOY / "haproxy/haproxy.cfg").read_text()
DEFAULTS = {name: field.default for name, field in ServiceSettings.model_fields.items()}


def number(text: str, directive: str) -> float:
    """Return the number of a directive, which must be the same wherever it is."""
    [found] = set(re.findall(rf"\b{directive}[ =](\d+)", text))
    return float(found)


@pytest.mark.nginx
def test_nginx_accepts_its_files(tmp_path: Path) -> None:
    (tmp_path / "distillery").mkdir()
    shutil.copy(DEPLOY / "nginx/proxy.conf", tmp_path / "distillery")
    shutil.copy(DEPLOY / "nginx/distillery.conf", tmp_path)
    (tmp_path / "nginx.conf").write_text("pid nginx.pid; events {} http { include distillery.conf; }")
    command = ["nginx", "-t", "-q", "-p", str(tmp_path), "-e", "stderr", "-c", "nginx.conf"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.cluster
def test_haproxy_accepts_its_file_without_a_warning() -> None:
    command = ["haproxy", "-c", "-q", "-f", str(DEPLOY / "haproxy/haproxy.cfg")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_response_may_take_as_long_as_the_service_allows() -> None:
    for text, directive in ((PROXY, "proxy_read_timeout"), (HAPROXY, "timeout server")):
        assert DEFAULTS["request_timeout"] < number(text, directive) <= DEFAULTS["request_timeout"] + 2


def test_idle_connections_are_closed_before_the_service_does() -> None:
    assert number(UPSTREAM, "keepalive_timeout") < DEFAULTS["keep_alive"]


def test_bodies_are_limited_as_by_the_service() -> None:
    assert number(PROXY, "client_max_body_size") * 2**20 == DEFAULTS["max_body_bytes"]


def test_a_replica_serves_until_both_have_noticed_that_it_is_not_ready() -> None:
    """`--shutdown-delay` of the manifests, which the documents name."""
    deployment = yaml.safe_load((DEPLOY / "kubernetes/base/deployment.yaml").read_text())
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    [delay] = [float(one["value"]) for one in container["env"] if one["name"] == "DISTILLERY_SHUTDOWN_DELAY"]
    assert number(HAPROXY, "inter") * number(HAPROXY, "fall") < delay
    assert number(UPSTREAM, "fail_timeout") <= delay


def test_servers_are_replaced_and_keep_their_options() -> None:
    text = with_servers(UPSTREAM, "    server 10.0.0.1:80", "    server 10.0.0.2:80")
    assert re.findall(r"^    server (.*)", text, re.MULTILINE) == [
        "10.0.0.1:80 max_fails=1 fail_timeout=2s;",
        "10.0.0.2:80 max_fails=1 fail_timeout=2s;",
    ]
    assert "10.77" not in text
    assert re.findall(r"^    server .*", with_servers(HAPROXY, "    server a 10.0.0.1:80"), re.MULTILINE) == [
        "    server a 10.0.0.1:80"
    ]
