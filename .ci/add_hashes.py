"""Add the hashes of locked requirements to a CycloneDX file; run by .ci/sbom.

cyclonedx-py reads either what is installed, which has no hashes, or requirements, which have no licences.
"""

import json
import re
import sys
from pathlib import Path

from packaging.utils import canonicalize_name


def main(packages: str, requirements: str, output: str) -> None:
    """Write `output`: `packages` with the hashes that `requirements` permits for each package."""
    document = json.loads(Path(packages).read_text(encoding="utf-8"))
    lines = Path(requirements).read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    hashes = {line.partition(" ")[0]: re.findall(r"--hash=sha256:([0-9a-f]{64})", line) for line in lines}
    for component in document["components"]:
        locked = f"{canonicalize_name(component['name'])}=={component['version']}"
        component.setdefault("externalReferences", []).append(
            {
                "type": "distribution",
                "url": f"https://pypi.org/simple/{canonicalize_name(component['name'])}/",
                "comment": "one of these files",
                "hashes": [{"alg": "SHA-256", "content": content} for content in hashes[locked]],
            }
        )
    Path(output).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
