"""A limit for log lines that somebody else can cause, so that nobody can fill the disk with them."""

from __future__ import annotations


class LineLimit:
    """Allows ``burst`` lines of one kind at once, and after that one each ``interval`` seconds.

    It counts in ``left_out`` the lines that it did not allow. Whoever reports the number sets it to 0.
    """

    __slots__ = ("_free_at", "_interval", "_slack", "left_out")

    def __init__(self, burst: int, interval: float) -> None:
        # A leaky bucket in one number: each line moves on the time at which the bucket would be empty. There
        # is room for a line while that time is less than a burst away.
        self._interval = interval
        self._slack = (burst - 1) * interval
        self._free_at = 0.0
        self.left_out = 0

    def allows(self, now: float) -> bool:
        """Return whether a line may be written at ``now`` (time.monotonic())."""
        free_at = self._free_at
        if free_at < now:
            self._free_at = now + self._interval
            return True
        if free_at - now > self._slack:
            self.left_out += 1
            return False
        self._free_at = free_at + self._interval
        return True

    def suffix(self) -> str:
        """Return the end of an allowed line that tells how many like it were left out before; "" for none."""
        left_out, self.left_out = self.left_out, 0
        return f" ({left_out} more like this were left out before)" if left_out else ""


def warnings() -> LineLimit:
    """Return the limit for warnings of one kind: the first ten matter, then one each minute shows it lasts.

    That is less than half a megabyte a day.
    """
    return LineLimit(10, 60.0)
