"""A formula over rows that come in batches: prepare, stats, merge, finalise, each callable alone and anywhere.

prepare(formula, source) -> Recipe      what is learnt once, with a first pass where the formula needs one
stats(recipe, rows)      -> Partial     sums of some rows; picklable, made in any process
merge(partials)          -> Partial     in any order and grouping
finalise(partial)        -> StreamedDesign, which fits as a design in memory does
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastlmm_core.core import Accumulator, BatchTerm, StreamedModel
from fastlmm_core.core.control import checked_control
from fastlmm_core.errors import DataError, FormulaError, MemoryLimitError, ModelError, StreamedError
from fastlmm_core.formula.checks import check_sizes, reading_notes
from fastlmm_core.formula.design import Design
from fastlmm_core.formula.dictionaries import KeyDictionary, LevelDictionary
from fastlmm_core.formula.fingerprint import fingerprint, fingerprint_of_columns
from fastlmm_core.formula.frame import Numeric
from fastlmm_core.formula.grid_info import GridInfo, GridSource
from fastlmm_core.formula.levels import Factor, Interaction, Levels
from fastlmm_core.formula.random_terms import in_order, lme4_order
from fastlmm_core.formula.recipe import Recipe, Survey
from fastlmm_core.formula.sources import Stream

if TYPE_CHECKING:
    from fastlmm_core.fitting.options import FitOptions

__all__ = ["Partial", "StreamedDesign", "accumulate", "finalise", "merge", "prepare", "stats", "streamed_model"]

Array = NDArray[np.float64]


class NoRows:
    """What stands where the rows of a design would be: any use of it says that they are gone."""

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise StreamedError()

    __len__ = __iter__ = __getitem__ = __array__ = __array_ufunc__ = __array_function__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __matmul__ = __rmatmul__ = __neg__ = _refuse
    __bool__ = __truediv__ = __rtruediv__ = __lt__ = __gt__ = __le__ = __ge__ = _refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying and pickling ask for what is not there
            raise AttributeError(name)
        raise StreamedError()

    def __repr__(self) -> str:
        return "<rows that are gone>"


NO_ROWS: Any = NoRows()


class NoGrid(GridSource):
    """A summary of the fixed part's columns that is not made."""

    def __init__(self) -> None:
        pass

    def info(self) -> GridInfo:
        """Refused."""
        raise StreamedError("means over a reference grid")

    def __getstate__(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class StreamedDesign(Design):
    """A design whose rows are gone: its codings, and the sums that a fit is made of.

    Attributes
    ----------
    total : Accumulator
        Its terms in the order of `random`.
    level_orders : tuple of (q,)
        Place of each of the accumulator's codes among the levels, a factor.
    prints : tuple of three and tuple of p
        `fingerprint` of the rows, and `fingerprint_of_columns`.
    """

    total: Accumulator = field(kw_only=True, repr=False)
    level_orders: tuple[NDArray[np.int64], ...] = field(kw_only=True, repr=False)
    prints: tuple[tuple[int, int, int], tuple[int, ...]] = field(kw_only=True, repr=False)

    streamed: ClassVar[bool] = True

    @property
    def x_factor(self) -> Array:
        """R of X, without weights."""
        return self.total.finish(self.level_orders)[0].plain


class Partial:
    """What has been added up of a recipe's rows, and the levels met."""

    def __init__(self, recipe: Recipe, keep_rows: bool = False, memory: int | None = None) -> None:
        assert recipe.spec is not None
        self.recipe, self.memory = recipe, memory
        self.chains = list(dict.fromkeys(part.term.group for part in recipe.parts))  # a grouping factor each
        terms = []
        for part in recipe.parts:
            ones = part.spec is None or (part.spec.terms.intercept and part.columns[0] == "Intercept")
            terms.append(BatchTerm(self.chains.index(part.term.group), len(part.columns), ones))
        names = recipe.spec.names
        intercept = 0 if recipe.fixed_terms.intercept else None
        self.total = Accumulator(terms, len(names), intercept, names, keep_rows=keep_rows, memory=memory)
        self.columns = {name: LevelDictionary(name) for name in recipe.groups}
        prefixes = dict.fromkeys(chain[:k] for chain in self.chains for k in range(2, len(chain) + 1))
        self.crossings = {prefix: KeyDictionary() for prefix in prefixes}
        self.n_total, self.n_missing, self.n_zero = 0, 0, 0
        self.weights = (np.inf, -np.inf)
        self.prints = np.zeros(3 + len(names), np.uint64)

    def add(self, batch: Any, where: str) -> None:
        """Add the rows of a record batch of the part ``where``.

        Raises
        ------
        FastLMMError
            What is wrong with them, and where.
        """
        try:
            rows = self.recipe.read(batch)
            self.n_total += rows.n_total
            self.n_missing += rows.n_missing
            self.n_zero += rows.n_zero
            if len(rows.y) == 0:
                return
            codes: dict[tuple[str, ...], NDArray[np.int32]] = {
                (name,): self.columns[name].code_factor(value, where)
                if isinstance(value, Factor)
                else self.columns[name].code(value, where)
                for name, value in rows.groups.items()
            }
            for prefix, keys in self.crossings.items():
                codes[prefix] = keys.code((codes[prefix[:-1]].astype(np.int64) << 32) | codes[prefix[-1:]])
            if rows.weights is not None:
                self.weights = (
                    min(self.weights[0], float(rows.weights.min())),
                    max(self.weights[1], float(rows.weights.max())),
                )
            used = [codes[chain] for chain in self.chains]
            self.total.add(rows.y, rows.X, used, rows.z, weights=rows.weights, offset=rows.offset)
            self.prints[:3] += np.array(fingerprint(rows.y, rows.weights, rows.offset), np.uint64)
            self.prints[3:] += fingerprint_of_columns(rows.y, rows.X)
        except (DataError, FormulaError) as error:
            if type(error) in (DataError, FormulaError) and where not in str(error):
                raise type(error)(f"{where}: {error}") from None
            raise

    def merge(self, other: Partial) -> None:
        """Add what another has, which is not changed."""
        if self.recipe.said != other.recipe.said:
            raise ModelError("parts of other models cannot be merged")
        places: dict[tuple[str, ...], NDArray[np.integer]] = {
            (name,): own.places_of(other.columns[name], "another part") for name, own in self.columns.items()
        }
        for prefix, keys in self.crossings.items():
            theirs = other.crossings[prefix].keys
            left, right = places[prefix[:-1]].astype(np.int64), places[prefix[-1:]]
            places[prefix] = keys.code((left[theirs >> 32] << 32) | right[theirs & 0xFFFFFFFF])
        self.total.merge(other.total, [places[chain] for chain in self.chains])
        self.n_total, self.n_missing = self.n_total + other.n_total, self.n_missing + other.n_missing
        self.n_zero += other.n_zero
        self.prints += other.prints
        self.weights = (min(self.weights[0], other.weights[0]), max(self.weights[1], other.weights[1]))

    def why_none(self) -> str:
        """Why rows are left out."""
        outside = self.n_total - self.n_missing - self.n_zero
        reasons = {
            "have missing values": self.n_missing,
            "have weight zero": self.n_zero,
            f"are outside of subset={self.recipe.subset!r}": outside,
        }
        return ", ".join(f"{count} {what}" for what, count in reasons.items() if count) or "there are none"

    def levels(self) -> dict[tuple[str, ...], tuple[Levels, NDArray[np.int64]]]:
        """Levels of every grouping factor in order, and the place of each code among them."""
        out: dict[tuple[str, ...], tuple[Levels, NDArray[np.int64]]] = {
            (name,): column.finish() for name, column in self.columns.items()
        }
        for prefix, dictionary in self.crossings.items():
            (left, left_place), (right, right_place) = out[prefix[:-1]], out[prefix[-1:]]
            keys = dictionary.keys
            final = left_place[keys >> 32] * len(right) + right_place[keys & 0xFFFFFFFF]
            order = np.argsort(final)
            place = np.empty(len(final), np.int64)
            place[order] = np.arange(len(final))
            out[prefix] = Interaction(left, right, final[order]), place
        return out


def prepare(formula: str, source: Stream, *, memory: int | None = None, **arguments: Any) -> Recipe:
    """What a model needs to know before its rows are added up.

    Parameters
    ----------
    formula : str
    source : Stream
    memory : int, optional
        Bytes that columns of the first pass may take.
    **arguments
        As of `Recipe`.

    Raises
    ------
    DataError
        A first pass is needed, and the source can be read only once.
    MemoryLimitError
        A transform learns from columns that do not fit.
    """
    recipe = Recipe(formula, source.names, **arguments)
    recipe.look(source.peek(recipe.needed))
    found = None
    if recipe.needs:
        if not source.repeatable:
            raise DataError(
                f"{' and '.join(recipe.needs)} can only be computed after a first pass over the rows, and this "
                "iterator gives them once: pass a function that returns it anew, a path or a dataset, or say the "
                "levels as in C(f, levels=[...])"
            )
        found = Survey()
        limit = memory if memory is not None else checked_control(None).n_bytes
        for where, batch in source.batches(recipe.survey_columns):
            try:
                recipe.survey(batch, found)
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
            if found.nbytes > limit:
                raise MemoryLimitError(
                    f"{' and '.join(recipe.learns)} learns from whole columns, which take more than {limit} bytes: "
                    "compute it beforehand"
                )
    recipe.settle(found)
    return recipe


def stats(recipe: Recipe, rows: Any) -> Partial:
    """Sums of some rows.

    Parameters
    ----------
    recipe : Recipe
    rows : Stream, or what `stream` takes, or a pandas or polars frame

    Returns
    -------
    Partial
    """
    source = as_stream(rows)
    out = Partial(recipe, memory=source.memory)
    for where, batch in source.batches(recipe.needed):
        out.add(batch, where)
    return out


def as_stream(rows: Any) -> Stream:
    """Any rows as a stream: tables in memory, too."""
    if isinstance(rows, Stream):
        return rows
    if isinstance(rows, pd.DataFrame):
        import pyarrow as pa

        rows = pa.Table.from_pandas(rows, preserve_index=False)
    elif (hasattr(rows, "to_arrow") and not hasattr(rows, "collect_schema")) or (
        type(rows).__module__.startswith("polars") and hasattr(rows, "to_arrow")
    ):
        rows = rows.to_arrow()
    return Stream(rows)


def merge(partials: Iterable[Partial]) -> Partial:
    """The sums of several parts, in a new one.

    Raises
    ------
    DataError
        There are none, or a grouping column has values of different kinds in them.
    """
    out: Partial | None = None
    for part in partials:
        if out is None:
            out = Partial(part.recipe, memory=part.memory)
        out.merge(part)
    if out is None:
        raise DataError("there is nothing to merge")
    return out


def accumulate(recipe: Recipe, source: Stream, keep_rows: bool = False) -> Partial:
    """Sums of all rows of a source, with its progress shown and its checkpoint kept; ``keep_rows`` of `Accumulator`."""
    report = progress_of(source)
    if source.checkpoint is None:
        out, rows = Partial(recipe, keep_rows, source.memory), 0
        for where, batch in source.batches(recipe.needed):
            out.add(batch, where)
            rows += batch.num_rows
            report(rows)
        report(-1)
        release_unused()
        return out
    folder = Checkpoint(source.checkpoint, recipe, source.parts)
    out, rows = Partial(recipe, keep_rows, source.memory), 0
    for k, name in enumerate(source.parts):
        part = folder.read(k)
        if part is None:
            part = Partial(recipe, keep_rows)
            for where, batch in source.batches(recipe.needed, [other for other in source.parts if other != name]):
                part.add(batch, where)
                report(rows + part.n_total)
            folder.write(k, part)
        rows += part.n_total
        report(rows)
        out.merge(part)
    report(-1)
    return out


class Checkpoint:
    """Finished parts of one call in a folder."""

    def __init__(self, folder: str | os.PathLike[str], recipe: Recipe, parts: Sequence[str]) -> None:
        self.folder = os.fspath(folder)
        os.makedirs(self.folder, exist_ok=True)
        self.key = hashlib.sha256("\n".join([recipe.said, *map(stamped, parts)]).encode()).hexdigest()[:16]

    def _path(self, k: int) -> str:
        return os.path.join(self.folder, f"{self.key}-{k:06d}.pkl")

    def read(self, k: int) -> Partial | None:
        """A part that is finished."""
        try:
            with open(self._path(k), "rb") as file:
                found: Partial = pickle.load(file)
        except (FileNotFoundError, EOFError, pickle.UnpicklingError):
            return None
        return found

    def write(self, k: int, part: Partial) -> None:
        """Keep a part: its file is whole or not there."""
        path = self._path(k)
        with open(f"{path}.new", "wb") as file:
            pickle.dump(part, file, protocol=pickle.HIGHEST_PROTOCOL)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{path}.new", path)


def stamped(path: str) -> str:
    """A part's name with the size of its file and when it was written, where it is a file."""
    try:
        found = os.stat(path)
    except OSError:
        return path
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def release_unused() -> None:
    """Give the memory of batches back, which Arrow keeps for more of them."""
    arrow = sys.modules.get("pyarrow")
    if arrow is not None:
        arrow.default_memory_pool().release_unused()


def progress_of(source: Stream) -> Callable[[int], object]:
    """What is called with the rows read so far, and with -1 in the end."""
    if callable(source.progress):
        told = source.progress
        return lambda rows: told(rows) if rows >= 0 else None
    if not source.progress:
        return lambda rows: None
    from tqdm import tqdm

    bar = tqdm(unit="rows", unit_scale=True, file=sys.stderr, leave=False)

    def show(rows: int) -> None:
        if rows < 0:
            bar.close()
        else:
            bar.update(rows - bar.n)

    return show


def streamed_model(design: Design, options: FitOptions) -> StreamedModel:
    """The core's model of a streamed design, for its own response."""
    assert isinstance(design, StreamedDesign)
    return StreamedModel(design.total, design.level_orders, reml=options.reml, control=options.control)


def finalise(partial: Partial, *, check_levels: bool = True, last: bool = False) -> StreamedDesign:
    """The design of rows that have been added up.

    Parameters
    ----------
    partial : Partial
    check_levels : bool
        As in `Control`.
    last : bool
        Nothing will be added or merged any more: codes are renumbered where they are, instead of once more beside it.

    Raises
    ------
    DataError
        No row is complete.
    ModelError
        See `check_sizes`.
    """
    recipe = partial.recipe
    if partial.total.n == 0:
        raise DataError(f"no row is left of {partial.n_total}: {partial.why_none()}")
    levels = partial.levels()
    none = np.empty(0, np.int32)
    coded = {chain: (none, levels[chain][0]) for chain in partial.chains}
    order = lme4_order([len(levels[part.term.group][0]) for part in recipe.parts])
    random = tuple(
        replace(term, codes=NO_ROWS, z=None if term.spec is None else NO_ROWS) for term in in_order(recipe.parts, coded)
    )
    weighted = partial.weights[0] <= partial.weights[1]
    check_sizes(random, partial.total.n, np.array(partial.weights) if weighted else None, check=check_levels)
    assert recipe.spec is not None
    given = recipe.offset if recipe.offset is not None else False
    answer = Numeric(np.zeros(1))
    prints = partial.prints.tolist()
    orders = [levels[chain][1] for chain in partial.chains]
    if last:
        partial.total.renumber(orders)
        orders = [np.arange(len(of)) for of in orders]
    return StreamedDesign(
        formula=recipe.parsed,
        y=NO_ROWS,
        X=NO_ROWS,
        x_names=recipe.spec.names,
        x_terms=recipe.spec.term_columns,
        random=random,
        weights=NO_ROWS if weighted else None,
        offset=NO_ROWS if recipe.offset is not None or recipe.parsed.offsets else None,
        n_total=partial.n_total,
        n_missing=partial.n_missing,
        n_zero_weight=partial.n_zero,
        row_index=NO_ROWS,
        index=None,
        spec=recipe.spec,
        context=recipe.context,
        state=recipe.state,
        offset_given=given,
        grid_source=NoGrid(),
        notes=reading_notes(answer, recipe.parsed.response, partial.n_zero),
        total=partial.total.reordered(order),
        level_orders=tuple(orders),
        prints=((prints[0], prints[1], prints[2]), tuple(prints[3:])),
    )
