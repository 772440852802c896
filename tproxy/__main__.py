"""``python -m tproxy`` is the command ``tproxy``."""

from tproxy.cli.main import main

main()
