"""What a Python expression of a formula reads: its names, what each is used for, and the columns among them."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Container, Iterable, Iterator
from typing import NamedTuple

from fastlmm_core.errors import FormulaError
from fastlmm_core.formula.held import knows_missing
from fastlmm_core.formula.quoting import plain_code, r_operator, shown
from fastlmm_core.formula.transforms import FACTOR_MAKERS

__all__ = ["Names", "Read", "coded_columns", "names_in", "parse_python", "syntax"]

_BACKQUOTED = re.compile(r"`([^`]*)`|\"[^\"]*\"|'[^']*'")


class Read(NamedTuple):
    """How an expression reads a column.

    Attributes
    ----------
    column : str
    exact : bool
        Whether whole numbers are asked for as they are.
    summary : tuple of str or None
        Within a summary such as `mean(x)`, the columns without whose values a row is not in it; None elsewhere.
    """

    column: str
    exact: bool
    summary: tuple[str, ...] | None


def names_in(expr: str, columns: Container[str] = ()) -> set[str]:
    """The names that an expression reads, functions that it only calls left out; `columns` may have dotted names."""
    return {name for name, role in Names(expr, columns).roles() if role != "call"}


def coded_columns(expr: str, columns: Container[str] = ()) -> set[str]:
    """The columns whose values are the levels of a call's factors: k in `C(k)`, and in `relevel(factor(k), 2)`."""
    read = Names(expr, columns)

    def within(node: ast.expr) -> Iterator[str]:
        if isinstance(node, ast.Name):
            yield read.quoted.get(node.id, node.id)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FACTOR_MAKERS:
            for argument in node.args if node.func.id == "interaction" else node.args[:1]:
                yield from within(argument)

    return set(within(read.tree.body))


def syntax(expr: str, columns: Container[str] = ()) -> ast.expr:
    """The syntax tree of an expression of columns, R's names of functions as Python's; of nobody else's use."""
    return Names(expr, columns).tree.body


def parse_python(code: str) -> ast.Expression:
    """The syntax tree of an expression; FormulaError, with Python's message, where it is none."""
    try:
        return ast.parse(code.strip(), mode="eval")
    except SyntaxError as error:
        raise FormulaError(error.msg) from None
    except (ValueError, RecursionError, MemoryError) as error:  # a null byte; thousands of operators
        raise FormulaError(str(error) or type(error).__name__) from None


class Names:
    """The names of a Python expression whose odd columns are back-quoted, and what each is used for."""

    def __init__(self, expr: str, columns: Container[str]) -> None:
        quoted: dict[str, str] = {}

        def alias(match: re.Match[str]) -> str:
            if match[1] is None:
                return match[0]
            return quoted.setdefault(match[1], f"_quoted_{len(quoted)}_")

        try:
            text = _BACKQUOTED.sub(alias, plain_code(expr, columns)).strip()
            self.tree = parse_python(text)
            self.nodes = list(ast.walk(self.tree))
        except FormulaError as error:
            raise FormulaError(f"cannot read {shown(expr)}: {error}{r_operator(expr)}") from None
        _refuse_loose_logic(self.nodes, text, expr)
        self.quoted = {made: name for name, made in quoted.items()}
        calls = [node for node in self.nodes if isinstance(node, ast.Call)]
        self.called = {id(node.func) for node in calls}
        self.roots = {id(node.value) for node in self.nodes if isinstance(node, ast.Attribute)}
        self.levels = {
            id(argument)
            for node in calls
            if isinstance(node.func, ast.Name) and node.func.id in FACTOR_MAKERS
            for argument in node.args
        }
        self.keywords = {id(word.value) for node in calls for word in node.keywords}
        bound = (node.id for node in self.nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
        self.bound = {*bound, *(node.arg for node in self.nodes if isinstance(node, ast.arg))}
        self.aliases: dict[str, Read] = {}
        self.wanted: tuple[str, ...] = ()

    def roles(self) -> Iterator[tuple[str, str]]:
        """Each name with its use: "call", "root" of an attribute, "keyword" (its value), "quoted" or "value"."""
        uses = {"call": self.called, "root": self.roots, "keyword": self.keywords}
        for node in self.nodes:
            if isinstance(node, ast.Name) and node.id not in self.bound:
                if node.id in self.quoted:
                    yield self.quoted[node.id], "quoted"
                else:
                    yield node.id, next((use for use, ids in uses.items() if id(node) in ids), "value")

    def calls(self) -> Iterator[str]:
        """The names of the functions and methods that are called."""
        return _called(self.nodes)

    def is_plain(self, known: Callable[[str], bool]) -> bool:
        """Whether nothing but known functions is called, and neither attributes nor elements are taken."""
        return not any(isinstance(node, (ast.Attribute, ast.Subscript)) for node in self.nodes) and all(
            known(name) for name in self.calls()
        )

    def with_aliases(self, columns: Container[str], is_summary: Callable[[str], bool]) -> str:
        """The expression with columns under names of their own: Python's keywords and functions may be columns.

        `aliases` then has what each reads, and `wanted` the columns without which a row has no value: all but those of
        summaries with `na.rm=TRUE`.
        """
        column_of = {
            id(node): self.quoted.get(node.id, node.id)
            for node in self.nodes
            if isinstance(node, ast.Name) and id(node) not in self.called and node.id not in self.bound
        }
        column_of = {key: name for key, name in column_of.items() if name in columns}
        of: dict[int, tuple[str, ...]] = {}
        spared: set[int] = set()
        for call in self.nodes:  # the outermost first
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and is_summary(call.func.id):
                inside = [id(node) for node in ast.walk(call)]
                names = (
                    () if knows_missing(_called(ast.walk(call))) else {column_of[k] for k in inside if k in column_of}
                )
                of = {**dict.fromkeys(inside, tuple(sorted(names))), **of}
                spared |= {*inside} if _leaves_out_missing(call) else set()
        made: dict[Read, str] = {}
        for node in self.nodes:
            if isinstance(node, ast.Name) and id(node) in column_of:
                exact = id(node) in self.levels or id(node) in self.roots
                key = Read(column_of[id(node)], exact, of.get(id(node)))
                node.id = made.setdefault(key, f"_column_{len(made)}_")
        self.aliases = {alias: key for key, alias in made.items()}
        self.wanted = tuple(dict.fromkeys(name for key, name in column_of.items() if key not in spared))
        return ast.unparse(self.tree)


def _refuse_loose_logic(nodes: Iterable[ast.AST], text: str, expr: str) -> None:
    """FormulaError for `x > 0 & y > 0`, which Python reads as `x > (0 & y) > 0`."""
    source = text.encode()
    for node in nodes:
        for part in (node.left, *node.comparators) if isinstance(node, ast.Compare) else ():
            if isinstance(part, ast.BinOp) and isinstance(part.op, (ast.BitAnd, ast.BitOr)):
                before, after = source[: part.col_offset].rstrip(), source[part.end_col_offset :].lstrip()
                if not (before.endswith(b"(") and after.startswith(b")")):
                    raise FormulaError(
                        f"cannot read {shown(expr)}: & and | bind more tightly than comparisons in Python, unlike in "
                        "R: write (x > 0) & (z > 3)"
                    )


def _called(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The names of the functions and methods that are called."""
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            yield node.func.id if isinstance(node.func, ast.Name) else node.func.attr


def _leaves_out_missing(call: ast.Call) -> bool:
    """Whether a call has R's `na.rm=TRUE`."""
    words = [word.value for word in call.keywords if word.arg == "na_rm"]
    return any(getattr(word, "value", True) and getattr(word, "id", "") not in ("F", "FALSE") for word in words)
