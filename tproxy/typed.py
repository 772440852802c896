"""What modules that start often need of ``typing``: importing that is a tenth of a warm hook's time.

To type checkers these names are those of ``typing``. When running, nobody looks at types, and a named
tuple needs no more of its fields than names and defaults. From Python 3.14 on a class does not have
these before annotations are evaluated, so there it is ``typing``'s.
"""

import sys
from collections import namedtuple

TYPE_CHECKING = False  # to type checkers True, whatever it says

if TYPE_CHECKING or sys.version_info >= (3, 14):
    from typing import Any as Any
    from typing import NamedTuple as NamedTuple
    from typing import NoReturn as NoReturn
    from typing import Protocol as Protocol
    from typing import cast as cast
else:
    Any = NoReturn = Protocol = object

    def cast(kind, value):
        return value

    class _Record(type):
        """Makes of a class with fields what ``collections.namedtuple`` makes of their names."""

        def __new__(cls, name, bases, body):
            fields = body.pop("__annotations__", {})
            defaults = [body.pop(field) for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults)
            for attribute, value in body.items():
                setattr(made, attribute, value)
            return made

    NamedTuple = type.__new__(_Record, "NamedTuple", (), {})
