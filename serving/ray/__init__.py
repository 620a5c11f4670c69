"""The service on a Ray cluster, started by `serve run`: docs/ray.md.

Two applications, of which only one is needed:

- `serving.ray.nodes`: Ray places, watches and restarts a complete service on each node, and HAProxy distributes the
  requests; none of them passes through Ray.
- `serving.ray.replicas`: the service's ASGI application inside the replicas of Ray Serve.

Only this folder imports ray, which needs the extra `ray`.
"""
