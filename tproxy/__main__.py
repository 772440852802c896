"""``python -m tproxy`` is the command ``tproxy``."""

from tproxy.cli import main

main()
