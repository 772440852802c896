"""The daemon, except that it ends a minute after another one has taken over. Takes the daemon's options."""

from __future__ import annotations

from tproxy.daemon import __main__, daemon

daemon.LAST_ANSWER = 60.0
__main__.main()
