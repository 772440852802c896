"""The examples at the end of each command's help."""

from __future__ import annotations


def example(*lines: str) -> str:
    """Return the ``epilog`` of a click command that shows these lines as an example, each as it is."""
    return "\n".join(["\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)])
