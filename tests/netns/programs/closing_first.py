"""Make connections, and close each before the endpoint does: ``closing_first.py ADDRESS PORT COUNT``.

Behind the port is an endpoint that echoes. Prints, as JSON, how many were served, and why others failed.
"""

from __future__ import annotations

import json
import sys
from collections import Counter

from tests.netns.programs.asker import ask


def main() -> None:
    address, port, count = sys.argv[1:]
    outcomes = Counter(ask(address, int(port)) for _ in range(int(count)))
    served = outcomes.pop("", 0)
    print(json.dumps({"served": served, "failed": outcomes}))


main()
