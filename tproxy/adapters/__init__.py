"""What platforms hand to hooks, as calls of ``tproxy hook``: parse, call, nothing more.

A module for each platform, run as a program by the hook files under ``drivers/``. These decide
whether a failure may stop a guest: an adapter only says so, by its exit code.
"""
