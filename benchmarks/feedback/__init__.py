"""From a request log to a better model: candidates compared on it, and the whole loop on a real service."""
