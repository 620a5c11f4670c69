"""ASGI middleware: requests as the routes expect them, CORS, security headers."""
