"""Lays out a tree with tproxy and the packages that it carries, as a Debian package installs it.

The tree is a virtual environment whose interpreter is the distribution's: ``bin/python3`` is a link, and
``pyvenv.cfg`` makes Python look for modules in the tree (PEP 405). So ``sys.executable -m tproxy.daemon``, by
which processes of tproxy start others, finds the same tree. Nothing outside of the tree sees what it carries:
another program of the host may need another pyroute2. ``python -m venv`` cannot make it, because the
interpreter for which a package is made is not on this machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from packages import requirements

REMOVE = Path(__file__).with_name("remove-tproxy")

COMMAND = """\
#!{home}/bin/python3 -I
from tproxy.cli.main import main

main()
"""

# What wheels hold besides modules.
CLUTTER = ("__pycache__", "bin", "tests", "*.pyi", "py.typed", "*.c", "*.h")


def lay_out(tree: Path, home: str, python: str) -> Path:
    """Make the tree of a distribution, which will be installed at ``home``; return its folder for modules.

    Modules that it lacks are looked for among the packages of the distribution, but not among those of
    /usr/local, which may be of any version.
    """
    modules = tree / f"lib/python{python}/site-packages"
    modules.mkdir(parents=True)
    (modules / "distribution.pth").write_text("/usr/lib/python3/dist-packages\n")
    (tree / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {python}\n"
    )
    (tree / "bin").mkdir()
    (tree / "bin/python3").symlink_to(f"/usr/bin/python{python}")
    (tree / "bin/tproxy").write_text(COMMAND.format(home=home))
    (tree / "bin/tproxy").chmod(0o755)
    shutil.copy(REMOVE, tree / "bin")
    return modules


def fill(modules: Path, source: Path, names: Iterable[str], python: str, machine: str) -> None:
    """Copy tproxy from a source tree, with the drivers to which it has a link, and the packages to carry."""
    requirements.carry(names, modules, python, machine)
    for path in [path for pattern in CLUTTER for path in modules.rglob(pattern)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    shutil.copytree(source / "tproxy", modules / "tproxy", ignore=shutil.ignore_patterns("__pycache__"))
