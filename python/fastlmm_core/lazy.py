"""Attributes that are made when they are asked for, of objects and of packages."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["cached_property", "lazy_attributes"]

if TYPE_CHECKING or sys.version_info >= (3, 12):
    cached_property = functools.cached_property
else:

    class cached_property(functools.cached_property):
        """The standard library's without its lock, which version 3.12 took out.

        That lock is one for the attribute of all objects of a class: threads wait for each other's objects, and a child
        forked while some thread makes the attribute of one object would wait for ever at that of another.
        """

        def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
            if instance is None:
                return self
            values = instance.__dict__
            if self.attrname not in values:
                values[self.attrname] = self.func(instance)
            return values[self.attrname]


def lazy_attributes(package: str, where: Mapping[str, str], modules: Collection[str] = ()) -> Callable[[str], Any]:
    """The `__getattr__` of a package that imports nothing until it is used.

    Parameters
    ----------
    package : str
    where : mapping
        Module below the package that has each name.
    modules : collection of str
        Modules and packages below it that need no import of their own.
    """

    def attribute(name: str) -> Any:
        if name in modules:
            return import_module(f"{package}.{name}")
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{where[name]}"), name)
        setattr(sys.modules[package], name, value)  # the next look-up finds it without coming here
        return value

    return attribute
