"""The relay: the process in a bridge's namespace that accepts connections, and what it says.

A relay exchanges *messages* (``wire``) with daemon and workers over *channels*, with descriptors beside them.
A *predecessor* is the relay that a namespace has already when another one, its *successor*, is started there.
"""
