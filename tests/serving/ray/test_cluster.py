"""Both applications on a Ray cluster of a head and two nodes, each a network namespace."""

import http.client
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.cluster.balancers import DEPLOY, servers_up
from benchmarks.cluster.engines import Site
from benchmarks.cluster.faults import hosts_of_a_cluster
from benchmarks.cluster.hosts import Host
from benchmarks.cluster.load import Load, summary
from benchmarks.cluster.ray_engines import RayNodes, RayReplicas
from tests.support.requests.tensors import binary, tensor
from tests.support.root import needs_root
from tests.support.service import Service, eventually
from tests.support.training.samples import sample_test

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    needs_root,
]

PATIENCE_S = 300
IMAGES = sample_test().images.numpy()
JSON = {"Content-Type": "application/json"}
BODIES = [json.dumps({"image": image.tolist()}).encode() for image in IMAGES[:4]]
BINARY = binary(IMAGES[:3])
REQUESTS: dict[str, tuple[str, str, dict[str, str], bytes]] = {
    "one image": ("POST", "/predict/student", JSON, BODIES[0]),
    "a picture file": (
        "POST",
        "/predict",
        {"Content-Type": "image/png"},
        (DEPLOY.parent / "examples/seven.png").read_bytes(),
    ),
    "V2 as JSON": (
        "POST",
        "/v2/models/student/infer",
        JSON,
        json.dumps({"inputs": [tensor(IMAGES[:2], data=IMAGES[:2].tolist())]}).encode(),
    ),
    "V2 as binary": ("POST", "/v2/models/student/infer", *BINARY),
    "V2 metadata": ("GET", "/v2/models/student", {}, b""),
    "V2 readiness": ("GET", "/v2/health/ready", {}, b""),
    "models": ("GET", "/models", {}, b""),
    "readiness": ("GET", "/health/ready", {}, b""),
    "the web page": ("GET", "/", {}, b""),
    "an unknown model": ("POST", "/predict/none", JSON, BODIES[0]),
    "an unknown route": ("GET", "/none", {}, b""),
    "another method": ("GET", "/predict", {}, b""),
    "invalid JSON": ("POST", "/predict", JSON, b"{"),
    "an unknown media type": ("POST", "/predict", {"Content-Type": "text/css"}, b"a"),
}


class Response(NamedTuple):
    """A response without what differs from one to the next."""

    status: int
    headers: dict[str, str]
    body: Any


class BothApplications(RayNodes):
    """`nodes` and `replicas` in one cluster, with places for both on each node."""

    cpus = 2

    def configuration(self) -> dict[str, Any]:
        """Return both configurations in one; the services of `nodes` listen on another port."""
        configuration = super().configuration()
        replicas: dict[str, Any] = yaml.safe_load((DEPLOY / "ray" / RayReplicas.application).read_text())
        [one] = configuration["applications"]
        [other] = replicas["applications"]
        other["name"] = "replicas"
        other["args"] = one["args"] | {"replicas": 2}
        other["deployments"] = [{"name": "replica", "max_replicas_per_node": 1}]
        one["args"] = one["args"] | {"port": 8001}
        return replicas | {"proxy_location": "HeadOnly", "applications": [one, other]}


class Cluster(NamedTuple):
    engine: BothApplications
    client: Host
    entry: Host
    nodes: list[Host]

    def connection(self, application: str, host: Host | None = None) -> http.client.HTTPConnection:
        """Return a connection from the client to an application, or to a replica on a host."""
        port = {"nodes": 8080, "replicas": 8000, "replica": 30000}[application]
        return http.client.HTTPConnection((host or self.entry).address, port, timeout=20)

    def replicas_up(self) -> int:
        """Return the number of replicas of `replicas` to which Ray Serve's HAProxy sends requests."""
        return servers_up(RayReplicas.balancer_socket(self.engine))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cluster(model_repository: Path) -> Iterator[Cluster]:
    with (
        TemporaryDirectory(prefix="d-") as folder,  # sockets have short paths
        hosts_of_a_cluster(2) as (client, entry, nodes),
    ):
        site = Site(entry=entry, models_dir=model_repository, folder=Path(folder), shutdown_delay_s=2.5)
        with BothApplications(site) as engine:
            engine.start(nodes)
            cluster = Cluster(engine, client, entry, nodes)
            eventually(lambda: cluster.replicas_up() == 2, PATIENCE_S)
            yield cluster
        assert not [process for host in (entry, *nodes) for process in host.processes()]


def send(connection: http.client.HTTPConnection, request: str) -> Response:
    method, path, headers, body = REQUESTS[request]
    with closing(connection):
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        content: Any = response.read()
    fields = {name.lower(): value for name, value in response.getheaders()}
    assert len(response.headers.get_all("x-request-id", [])) == 1
    if fields.get("content-type") == "application/json":
        content = json.loads(content)
        if isinstance(content, dict):
            content.pop("timing", None)
    differing = {"date", "server", "server-timing", "x-request-id", "connection"}
    length = {"content-length"} if isinstance(content, dict) and "predictions" in content else set()
    return Response(
        response.status, {name: fields[name] for name in fields.keys() - differing - length}, content
    )


@pytest.mark.parametrize("application", ["nodes", "replicas"])
@pytest.mark.parametrize("request_name", REQUESTS)
def test_responses_are_those_of_the_service(
    cluster: Cluster, service: Service, application: str, request_name: str
) -> None:
    expected = send(http.client.HTTPConnection(urlsplit(service.url).netloc), request_name)
    with cluster.client.entered():
        assert send(cluster.connection(application), request_name) == expected


def test_a_replica_joins_the_images_of_several_requests_in_one_batch(cluster: Cluster) -> None:
    node = cluster.nodes[0]

    def post(_: int) -> int:
        with cluster.client.entered(), closing(cluster.connection("replica", node)) as connection:
            for body in BODIES:
                connection.request("POST", "/predict/student", body, JSON)
                response = connection.getresponse()
                response.read()
            return response.status

    def batches() -> tuple[float, float]:
        """Return the images and the runs of the model, from the replica's own metrics."""
        with cluster.client.entered(), closing(cluster.connection("replica", node)) as connection:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        values = {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.labels.get("model") == "student"
        }
        return values["distillery_batch_size_images_sum"], values["distillery_batch_size_images_count"]

    def joined() -> bool:
        with ThreadPoolExecutor(16) as pool:
            assert set(pool.map(post, range(64))) == {200}
        images, runs = batches()
        return images > runs

    eventually(joined, PATIENCE_S)


def test_a_replica_that_dies_is_replaced(cluster: Cluster) -> None:
    def replicas() -> set[psutil.Process]:
        return set(RayReplicas.replica_processes(cluster.engine, cluster.nodes[0]))  # type: ignore[arg-type]

    [replica] = before = replicas()
    replica.kill()
    eventually(lambda: bool(replicas() - before), PATIENCE_S)
    eventually(lambda: cluster.replicas_up() == 2, PATIENCE_S)
    with cluster.client.entered():
        assert send(cluster.connection("replicas"), "one image").status == 200


def test_no_request_is_lost_when_a_service_dies_and_is_restarted(cluster: Cluster) -> None:
    before = set(cluster.engine.replica_processes(cluster.nodes[0]))
    with Load(cluster.client, f"{cluster.engine.url}/predict/student", BODIES) as load:
        cluster.engine.kill(cluster.nodes[0])
        eventually(lambda: servers_up(cluster.engine.balancer_socket()) == 1, PATIENCE_S)
        cluster.engine.recover(cluster.nodes[0])
    assert not before & set(cluster.engine.replica_processes(cluster.nodes[0]))
    assert_none_lost(load)


def test_no_request_is_lost_when_an_actor_is_killed(cluster: Cluster) -> None:
    [actor] = [one for one in cluster.nodes[0].processes() if "ServeReplica:distillery:service" in one.name()]
    before = list(cluster.engine.replica_processes(cluster.nodes[0]))
    with Load(cluster.client, f"{cluster.engine.url}/predict/student", BODIES) as load:
        actor.kill()
        eventually(lambda: not any(map(psutil.Process.is_running, before)), PATIENCE_S)
        cluster.engine.recover(cluster.nodes[0])
    assert_none_lost(load)


def test_no_request_is_lost_with_a_node(cluster: Cluster) -> None:
    """The last test: the cluster remains without this node."""
    with Load(cluster.client, f"{cluster.engine.url}/predict/student", BODIES) as load:
        cluster.engine.kill_host(cluster.nodes[1])
        cluster.engine.wait_for(1)
        time.sleep(1)  # of requests to the other node alone
    assert_none_lost(load)


def assert_none_lost(load: Load) -> None:
    counts = summary(load.outcomes)
    assert counts["sent"] > 10
    assert counts["failed"] == 0, counts
