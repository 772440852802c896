"""Asks Prometheus' API: paths as a JSON list on stdin, the answers' ``data`` as a JSON list on stdout.

``python prometheus_api.py ADDRESS:PORT``
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request


def main() -> None:
    found = []
    for path in json.load(sys.stdin):
        try:
            with urllib.request.urlopen(f"http://{sys.argv[1]}{path}", timeout=60) as answer:
                found.append(json.load(answer)["data"])
        except urllib.error.HTTPError as error:
            found.append({"error": error.read().decode()})
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
