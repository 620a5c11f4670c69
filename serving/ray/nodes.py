"""A complete service on each node, placed, watched and restarted by Ray, and HAProxy in front of all of them.

    serve run deploy/ray/nodes.yaml

Requests do not pass through Ray: they take the path of docs/architecture.md, the fast path included.
"""

import threading
from contextlib import suppress
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy
from ray.serve.handle import DeploymentHandle

from serving.ray.haproxy import MAX_NODES, HAProxy
from serving.ray.process import ServiceProcess
from serving.ray.settings import NodeSettings

_FOLLOW_SECONDS = 0.5


def one_per_node(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:  # noqa: ARG001 - Ray Serve's signature
    """Autoscaling policy: a replica for each node."""
    return len(_addresses()), {}


def _addresses() -> list[str]:
    """Return the addresses of the nodes that live and have a CPU; the head has none if started with `--num-cpus 0`."""
    return [
        node["NodeManagerAddress"]
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
    ]


class NodeService:
    """The service of one node."""

    def __init__(self, settings: NodeSettings) -> None:
        """Start it and wait until it is ready. Raises `ServiceError`."""
        self._process = ServiceProcess(settings)

    def check_health(self) -> None:
        """Raises `ServiceError` or `CallError`: Ray then replaces this actor."""
        self._process.check()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self._process.stop()


class Balancer:
    """HAProxy on the head node."""

    def __init__(self, settings: NodeSettings, services: DeploymentHandle[Any]) -> None:  # noqa: ARG002 - binds them
        self._haproxy = HAProxy(settings.balancer_port, settings.port)
        self._stopped = threading.Event()
        threading.Thread(target=self._follow, name="follow", daemon=True).start()

    def check_health(self) -> None:
        """Raises `ServiceError`: Ray then replaces this actor."""
        self._haproxy.check()

    def __del__(self) -> None:
        self._stopped.set()
        self._haproxy.stop()

    def _follow(self) -> None:
        while not self._stopped.wait(_FOLLOW_SECONDS):
            with suppress(OSError):
                self._haproxy.follow(_addresses())


def app(settings: NodeSettings) -> serve.Application:
    """Build the application for `serve run`."""
    policy = AutoscalingPolicy(policy_function=one_per_node)  # type: ignore[no-untyped-call]
    service = serve.deployment(
        name="service",
        max_replicas_per_node=1,
        autoscaling_config=AutoscalingConfig(
            min_replicas=0,
            initial_replicas=1,
            max_replicas=MAX_NODES,
            upscale_delay_s=0,
            downscale_delay_s=0,
            policy=policy,
        ),
        health_check_period_s=1,
        health_check_timeout_s=5,
        graceful_shutdown_timeout_s=settings.shutdown_delay + settings.request_timeout + 10,
        ray_actor_options={"num_cpus": 1},
    )(NodeService)
    balancer = serve.deployment(
        name="balancer",
        health_check_period_s=1,
        ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},
    )(Balancer)
    return balancer.bind(settings, service.bind(settings))
