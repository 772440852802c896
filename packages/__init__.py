"""Makes packages of this checkout: the Makefile runs ``deb``, ``zipapp`` and ``manual``."""
