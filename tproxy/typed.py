"""The names of ``typing`` that hooks and relays need. Importing it would be a tenth of a warm hook's time.

To type checkers these names are those of ``typing``. At run time only the names and defaults of a named
tuple's fields matter. ``collections.namedtuple`` would do, but it compiles code for each class: for the two
dozen classes of a warm hook that was 4 % of its instructions. From Python 3.14 on, a class has its
annotations only when they are evaluated, so there these names are ``typing``'s at run time too.
"""

import sys

TYPE_CHECKING = False  # type checkers take it for True

if TYPE_CHECKING or sys.version_info >= (3, 14):
    from typing import Any as Any
    from typing import NamedTuple as NamedTuple
    from typing import NoReturn as NoReturn
    from typing import Protocol as Protocol
    from typing import cast as cast
else:
    from collections import _tuplegetter  # of which collections.namedtuple makes its fields

    Any = NoReturn = Protocol = object

    def cast(kind, value):
        return value

    class _Tuple(tuple):
        """The methods of a named tuple."""

        __slots__ = ()

        def __new__(cls, *values, **named):
            if named or len(values) != len(cls._fields):
                left = cls._fields[len(values) :]
                known = {**cls._field_defaults, **named}
                if (
                    len(values) > len(cls._fields)
                    or not named.keys() <= set(left)
                    or not known.keys() >= set(left)
                ):
                    raise TypeError(f"{cls.__name__} takes the fields {', '.join(cls._fields)}")
                values = (*values, *(known[field] for field in left))
            return tuple.__new__(cls, values)

        def _replace(self, **named):
            values = tuple(named.pop(field, value) for field, value in zip(self._fields, self, strict=True))
            if named:
                raise ValueError(f"{type(self).__name__} has no field {', '.join(named)}")
            return tuple.__new__(type(self), values)

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def __repr__(self):
            fields = (f"{field}={value!r}" for field, value in self._asdict().items())
            return f"{type(self).__name__}({', '.join(fields)})"

        def __getnewargs__(self):
            return tuple(self)

    class _Record(type):
        """Turns a class with annotated fields into a named tuple with the class's methods."""

        def __new__(cls, name, bases, body):
            fields = tuple(body.get("__annotations__", ()))
            defaults = {field: body.pop(field) for field in fields if field in body}
            getters = {field: _tuplegetter(index, None) for index, field in enumerate(fields)}
            names = {
                "_fields": fields,
                "_field_defaults": defaults,
                "__match_args__": fields,
                "__slots__": (),
            }
            return type(name, (_Tuple,), {**body, **getters, **names})

    NamedTuple = type.__new__(_Record, "NamedTuple", (), {})
