"""Frozen dataclasses whose constructor sets all attributes at once."""

import inspect
import pickle
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace

import pytest

from fastlmm_core.records import quick


@quick
@dataclass(frozen=True)
class Plain:
    """Every kind of argument."""

    a: int
    b: str = "b"
    made: list = field(default_factory=list)
    last: float = field(default=2.5, kw_only=True)


@quick
@dataclass(frozen=True)
class Derived(Plain):
    """One more."""

    more: tuple = ()


@dataclass(frozen=True)
class Slow:
    """The same without."""

    a: int
    b: str = "b"
    made: list = field(default_factory=list)
    last: float = field(default=2.5, kw_only=True)


def test_it_is_the_dataclass_that_it_was():
    made = Plain(1, last=3.0)
    assert made == Plain(a=1, b="b", made=[], last=3.0) != Plain(2)
    assert repr(made) == repr(Slow(1, last=3.0)).replace("Slow", "Plain")
    assert made.made is not Plain(1).made
    assert [f.name for f in fields(made)] == ["a", "b", "made", "last"]
    assert replace(made, a=4) == Plain(4, last=3.0)
    assert pickle.loads(pickle.dumps(made)) == made
    with pytest.raises(FrozenInstanceError):
        made.a = 2
    with pytest.raises(TypeError, match="positional argument"):
        Plain()
    with pytest.raises(TypeError, match="unexpected keyword argument 'c'"):
        Plain(1, c=2)
    with pytest.raises(TypeError, match="positional argument"):
        Plain(1, "b", [], 3.0)
    own, slow = inspect.signature(Plain.__init__).parameters, inspect.signature(Slow.__init__).parameters
    assert [(p.name, p.kind, p.annotation) for p in own.values()] == [
        (p.name, p.kind, p.annotation) for p in slow.values()
    ]
    assert Derived(1, more=(2,)).more == (2,)


def test_what_has_more_to_make_is_refused():
    @dataclass(frozen=True)
    class Checked:
        """With a check."""

        a: int

        def __post_init__(self):
            raise ValueError

    @dataclass(frozen=True)
    class Partial:
        """With a field that is no argument."""

        a: int = field(init=False, default=1)

    @dataclass(frozen=True, slots=True)
    class Slots:
        """Without a dict."""

        a: int

    for kind in (Checked, Partial, Slots):
        with pytest.raises(TypeError, match="has more to make"):
            quick(kind)
