"""Programs that tests run in stand-in hypervisors.

How to run one: ``python -m tests.netns.programs.NAME ARGUMENT...``, or by path. Each file is one program; its
docstring says what it does, which arguments it takes, and what it prints. The function ``program`` of
tests/netns/program.py gives the command for a name and its arguments.
"""
