"""Every promise of SECURITY.md names a test that exists."""

import ast
import re

from tests.support.service import ROOT


def test_every_promise_names_a_test_that_exists() -> None:
    table = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("## Promises")[2]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]*) \|$", table, re.MULTILINE)[1:]
    promises = [(promise, test) for promise, test in rows if not promise.startswith(("**", "---"))]
    assert len(promises) > 20
    for promise, test in promises:
        path, separator, name = test.strip("`").partition("::")
        assert separator, promise
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, test
