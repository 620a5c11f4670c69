"""The HTTP application: routes, OpenAPI document, and the fast path beside uvicorn's parser."""
