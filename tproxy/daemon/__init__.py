"""The daemon, which keeps relays, guards and the watcher in line with the service maps; and its client.

A *request* comes from a command or a hook (``client``, ``server``). The *catalog* has the services as the
maps said when they were last read. A *link* is a relay, or a worker, as the daemon sees it. The *spawner*
forks both. A *keeper* restores what must be there while the daemon runs: the guards' sets, and a watcher.
"""
