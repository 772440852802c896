"""The names of ``typing`` that hooks and relays need. Importing it would be a tenth of a warm hook's time.

To type checkers these names are those of ``typing``. At run time only the names and defaults of a named
tuple's fields matter. From Python 3.14 on, a class has its annotations only when they are evaluated, so there
these names are ``typing``'s at run time too.
"""

import sys
from collections import namedtuple

TYPE_CHECKING = False  # type checkers take it for True

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
        """Turns a class with annotated fields into a named tuple with the class's methods."""

        def __new__(cls, name, bases, body):
            fields = body.pop("__annotations__", {})
            defaults = [body.pop(field) for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults)
            for attribute, value in body.items():
                setattr(made, attribute, value)
            return made

    NamedTuple = type.__new__(_Record, "NamedTuple", (), {})
