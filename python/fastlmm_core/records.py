"""Frozen dataclasses that are made quickly: a fit of some hundred rows makes two dozen of them."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any, TypeVar

__all__ = ["quick"]

T = TypeVar("T")

LEFT_OUT: Any = object()
"""Stands for an argument whose default is made anew for each object."""


def quick(cls: type[T]) -> type[T]:
    """A frozen dataclass whose constructor sets all attributes at once.

    The one that `dataclass` writes for a frozen class calls ``object.__setattr__`` once a field, which takes several
    times as long as the rest of it. Arguments, defaults and annotations stay the same. A class with slots, with a
    ``__post_init__`` or with fields that are no arguments is not for it.
    """
    own: Any = fields(cls)  # type: ignore[arg-type]
    slots = any(vars(base).get("__slots__") for base in cls.__mro__)
    if slots or hasattr(cls, "__post_init__") or not all(field.init for field in own):
        raise TypeError(f"{cls.__name__} has more to make than its arguments")
    scope: dict[str, Any] = {"_set": object.__setattr__, "LEFT_OUT": LEFT_OUT}
    by_position, values = ["self"], []
    by_name: list[str] = []
    for field in own:
        argument = value = field.name
        if field.default_factory is not MISSING:
            argument, value = f"{value}=LEFT_OUT", f"_make_{value}() if {value} is LEFT_OUT else {value}"
            scope[f"_make_{field.name}"] = field.default_factory
        elif field.default is not MISSING:
            argument = f"{value}=_default_{value}"
            scope[f"_default_{field.name}"] = field.default
        (by_name if field.kw_only else by_position).append(argument)
        values.append(f"{field.name!r}: {value}")
    arguments = ", ".join([*by_position, *(["*", *by_name] if by_name else [])])
    exec(f"def __init__({arguments}):\n    _set(self, '__dict__', {{{', '.join(values)}}})", scope)  # as dataclass does
    made, slow = scope["__init__"], cls.__init__
    made.__annotations__, made.__qualname__, made.__module__ = slow.__annotations__, slow.__qualname__, cls.__module__
    cls.__init__ = made  # type: ignore[method-assign]
    return cls
