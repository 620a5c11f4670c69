"""All fuzz targets by name."""

from tests.fuzz import bodies, files, heads, messages

TARGETS = {target.name: target for module in (bodies, heads, messages, files) for target in module.TARGETS}
