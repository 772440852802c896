"""Programs that tests run in stand-in hypervisors: ``python -m tests.netns.programs.NAME ARGUMENT...``, or by path.

Each file is one program; its docstring says what it does, its arguments, and what it prints. The function
``program`` of tests/netns/program.py gives the command for a name and its arguments.
"""
