"""The HTTP application: routes, OpenAPI document, and the fast path that bypasses uvicorn's parser."""
