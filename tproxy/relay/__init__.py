"""The relay: the process in a bridge's namespace that accepts connections; how it starts, and what it says.

A relay and the daemon exchange *messages* (``wire``) over a *channel*, with descriptors beside them. A
*predecessor* is the relay that a namespace has already when another one, its *successor*, is started there.
"""
