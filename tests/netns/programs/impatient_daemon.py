"""The daemon, except that it waits for a relay's Hello for five seconds only. Takes the daemon's options."""

from __future__ import annotations

from tproxy.daemon import __main__, patience

patience.GREETING = 5.0
__main__.main()
