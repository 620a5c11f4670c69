"""Settings of both applications: those of the service, and `replicas` or the port of the balancer.

`serve run` passes them as `name=value` and a configuration file as `args`; environment and TOML files count as well, on
the machine where the application is built.
"""

from typing import Self

from pydantic import Field, PositiveInt, model_validator

from serving.config import ServiceSettings


class _RaySettings(ServiceSettings):
    def run(self) -> None:
        """Run the service in this process, without Ray, as the child of an actor does. Raises `DistilleryError`."""
        from serving.service import serve  # noqa: PLC0415 - an actor needs no LitServe

        serve(self)

    @model_validator(mode="after")
    def _no_tls(self) -> Self:
        if self.tls_cert:
            raise ValueError(
                "found tls_cert, but Ray's HAProxy sends plain HTTP; let a proxy in front of it end TLS"
            )
        return self


class ReplicaSettings(_RaySettings):
    """Of `serving.ray.replicas`; Ray Serve has the connections, so host, port, processes and timeouts are its own."""

    replicas: PositiveInt = Field(1, description="processes, each with all models, one core each")

    @model_validator(mode="after")
    def _no_grpc(self) -> Self:
        if self.grpc_port is not None:
            raise ValueError("found grpc_port, but replicas of Ray Serve have no gRPC; use serving.ray.nodes")
        return self


class NodeSettings(_RaySettings):
    """Of `serving.ray.nodes`; by default, services listen on all interfaces, for the balancer on the head node."""

    host: str = Field("0.0.0.0", description="address to listen on, on every node")  # noqa: S104
    shutdown_delay: float = Field(
        5.0,
        ge=0,
        le=600,
        description="seconds in which a service that drains fails its health check, and serves",
    )
    balancer_port: int = Field(8080, ge=1, le=65535, description="port of HAProxy, on the head node")
