"""Asks for a page again and again until its input ends; prints how often it was served, and each failure.

Arguments: the Host header, and the page's body.
"""

from __future__ import annotations

import select
import sys
import time
import urllib.request


def main(host: str, body: str) -> None:
    served = failed = 0
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        request = urllib.request.Request("http://127.0.0.1/", headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                served += answer.read().decode() == body
        except OSError as error:
            failed += 1
            print(repr(error), file=sys.stderr, flush=True)
        time.sleep(0.03)
    print(served, failed, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
