"""The routes of the Open Inference Protocol below /v2, and their part of the OpenAPI document."""
