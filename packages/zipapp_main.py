"""The first program of the zipapp: it unpacks a tree once, and runs the command in it.

Extension modules cannot be loaded from a zip file, and processes of tproxy start others as modules of Python.
So what runs is a tree on the disk, laid out as in the Debian package (packages/tree.py). It is in FOLDER, and
``current`` leads to it; hooks that are installed name that path, which stays when the file is replaced by
another version.

This file must be understood by Python 3.6, to say which one is needed.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile

OLDEST, NEWEST = (3, 10), (3, 14)

FOLDER = "/var/lib/tproxy/zipapp"
USERS_FOLDER = "~/.cache/tproxy/zipapp"  # for commands that need no root, such as check


def main() -> None:
    here = os.path.abspath(sys.path[0])
    python = os.path.realpath(sys.executable)
    folder = FOLDER if os.geteuid() == 0 else os.path.expanduser(USERS_FOLDER)
    if os.path.isdir(folder) and os.stat(folder).st_uid != os.geteuid():
        sys.exit(f"tproxy: {folder} belongs to another user: what is in it will not be run")
    file = os.stat(here)
    stamp = f"{here} {file.st_size} {file.st_mtime_ns} {python}"
    current = os.path.join(folder, "current")
    try:
        with open(os.path.join(current, "made-from")) as noted:
            fresh = noted.read() == stamp
    except OSError:
        fresh = False
    if not fresh:
        _require_python()
        _unpack(here, folder, stamp, python)
    program = os.path.join(current, "bin/python3")
    os.execv(program, [program, "-I", os.path.join(current, "bin/tproxy"), *sys.argv[1:]])


def _require_python() -> None:
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        text = "tproxy: this file needs a Python from {}.{} to {}.{}; {} is {}.{}"
        sys.exit(text.format(*OLDEST, *NEWEST, sys.executable, *sys.version_info[:2]))


def _unpack(here: str, folder: str, stamp: str, python: str) -> None:
    """Unpack the tree of this file unless it is there, and make ``current`` lead to it."""
    os.makedirs(folder, mode=0o755, exist_ok=True)
    version = "{}.{}".format(*sys.version_info[:2])
    with open(os.path.join(folder, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(here, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()[:16]
        name = f"{digest}-{version}"
        tree = os.path.join(folder, name)
        if not os.path.isdir(tree):
            new = os.path.join(folder, ".new")
            shutil.rmtree(new, ignore_errors=True)
            _make_tree(here, new, os.path.join(folder, "current"), version, python)
            os.rename(new, tree)
        draft = os.path.join(tree, ".made-from")
        with open(draft, "w") as file:
            file.write(stamp)
        os.rename(draft, os.path.join(tree, "made-from"))
        link = os.path.join(folder, ".current")
        if os.path.lexists(link):
            os.unlink(link)
        os.symlink(name, link)
        os.rename(link, os.path.join(folder, "current"))
        _forget_others(folder, name)


def _make_tree(here: str, new: str, home: str, version: str, python: str) -> None:
    modules = os.path.join(new, "lib/python" + version, "site-packages")
    with zipfile.ZipFile(here) as archive:
        for prefix in ("common/", "python" + version + "/"):
            for name in archive.namelist():
                if name.startswith(prefix):
                    target = os.path.join(modules, name[len(prefix) :])
                    os.makedirs(os.path.dirname(target), exist_ok=True)
                    with archive.open(name) as source, open(target, "wb") as copy:
                        shutil.copyfileobj(source, copy)
        programs = os.path.join(new, "bin")
        os.mkdir(programs)
        for name in ("tproxy", "remove-tproxy"):
            with open(os.path.join(programs, name), "wb") as copy:
                copy.write(archive.read("bin/" + name).replace(b"@HOME@", home.encode()))
            os.chmod(os.path.join(programs, name), 0o755)
    os.symlink(python, os.path.join(programs, "python3"))
    with open(os.path.join(new, "pyvenv.cfg"), "w") as file:
        text = "home = {}\ninclude-system-site-packages = false\nversion = {}\n"
        file.write(text.format(os.path.dirname(python), version))
    subprocess.call([os.path.join(programs, "python3"), "-I", "-m", "compileall", "-q", modules])


def _forget_others(folder: str, name: str) -> None:
    """Remove trees of other versions. A process that was started from one imports from ``current``."""
    for each in os.listdir(folder):
        tree = os.path.join(folder, each)
        if each not in (name, "current") and os.path.isfile(os.path.join(tree, "pyvenv.cfg")):
            shutil.rmtree(tree, ignore_errors=True)


if __name__ == "__main__":
    main()
