"""All fuzz targets by name."""

from tests.fuzz import bodies, files, heads, inputs, messages

TARGETS = {
    target.name: target for module in (bodies, heads, messages, files, inputs) for target in module.TARGETS
}
