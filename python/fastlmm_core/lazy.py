"""Attributes that are made when they are asked for."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

__all__ = ["cached_property"]

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
