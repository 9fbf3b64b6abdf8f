"""Numbers and small tables as text and as HTML: everything the printed objects share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

__all__ = [
    "abbreviate",
    "format_numbers",
    "format_pvalue",
    "html_table",
    "latex_table",
    "listed",
    "markdown_table",
    "text_table",
]


def format_numbers(values: Iterable[float], digits: int) -> list[str]:
    """Numbers of one column, with the same count of decimals.

    The count is the smallest at which every value shows `digits` significant digits or all the digits it has, which is
    how R prints a numeric vector. Where that would be wider than scientific notation, scientific notation is used.

    Parameters
    ----------
    values : iterable of float
        The column; NaN is shown as "NaN".
    digits : int
        Significant digits, at least 1.

    Returns
    -------
    list of str
        One text a value, not padded.
    """
    column = [float(v) for v in values]
    decimals, significant = 0, 1
    for v in column:
        if np.isfinite(v) and v != 0.0:
            mantissa, exponent = f"{v:.{digits - 1}e}".split("e")
            n_sig = len(mantissa.lstrip("-").replace(".", "").rstrip("0")) or 1
            significant = max(significant, n_sig)
            decimals = max(decimals, n_sig - 1 - int(exponent))
    # a double has no more than 17 digits: decimals past 300 would only print zeros
    fixed = [_plain(v, f".{min(decimals, 300)}f") for v in column]
    scientific = [_plain(v, f".{significant - 1}e") for v in column]
    width = max(map(len, fixed), default=0)
    return fixed if width <= max(map(len, scientific), default=0) else scientific


def format_pvalue(value: float) -> str:
    """A p-value to three digits; "<2e-16" where it is smaller than a double's precision, as R shows it."""
    if np.isnan(value):
        return "NaN"
    return f"{value:.3g}" if value >= 2e-16 else "<2e-16"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names separated by commas, the last after "and"; how many more there are beyond the first ones."""
    shown = [*names[:most], f"{len(names) - most} more"] if len(names) > most + 1 else list(names)
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def _plain(value: float, spec: str) -> str:
    return format(value, spec) if np.isfinite(value) else {"nan": "NaN", "inf": "Inf", "-inf": "-Inf"}[repr(value)]


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, indent: str = "") -> str:
    """Columns padded to their widest entry: the first `left` columns to the left, the others to the right."""
    table = [list(header), *map(list, rows)]
    widths = [max(len(row[j]) for row in table) for j in range(len(header))]
    lines = []
    for row in table:
        cells = [c.ljust(w) if j < left else c.rjust(w) for j, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append((indent + " ".join(cells)).rstrip())
    return "\n".join(lines)


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, caption: str = "") -> str:
    """The same table as HTML, every text escaped."""

    def cells(tag: str, row: Sequence[str]) -> str:
        align = ("left" if j < left else "right" for j in range(len(row)))
        style = "padding:0.15em 0.6em;text-align:"
        return "".join(f'<{tag} style="{style}{a}">{escape(c)}</{tag}>' for a, c in zip(align, row, strict=True))

    head = f"<caption>{escape(caption)}</caption>" if caption else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table>{head}<thead><tr>{cells('th', header)}</tr></thead><tbody>{body}</tbody></table>"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """The same table in the pipes of GitHub's Markdown, padded so that the source reads as a table too."""
    table = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[j]) for row in table)) for j in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = (c.ljust(w) if j < left else c.rjust(w) for j, (c, w) in enumerate(zip(row, widths, strict=True)))
        return f"| {' | '.join(cells)} |"

    rule = ("-" * w if j < left else "-" * (w - 1) + ":" for j, w in enumerate(widths))
    return "\n".join([line(table[0]), f"| {' | '.join(rule)} |", *map(line, table[1:])])


_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "σ": r"$\sigma$", "−": "$-$"},
}


def latex_text(text: str) -> str:
    """Text with LaTeX's own characters escaped; a number's minus is set as one."""
    number = text.removeprefix("(")
    if number[:1] == "-" and number[1:2].isdigit():
        text = text.replace("-", "−", 1)
    return "".join(_LATEX.get(c, c) for c in text)


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, rules: Iterable[int] = ()) -> str:
    """The same table as a `tabular` of booktabs, with a rule before each row that `rules` numbers."""

    def line(row: Sequence[str]) -> str:
        return " & ".join(map(latex_text, row)) + r" \\"

    body: list[str] = []
    before = set(rules)
    for i, row in enumerate(rows):
        body += [r"\midrule"] * (i in before) + [line(row)]
    columns = "l" * left + "r" * (len(header) - left)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(header), r"\midrule"]
    return "\n".join([*lines, *body, r"\bottomrule", r"\end{tabular}"])


def abbreviate(name: str, width: int) -> str:
    """`name` cut to `width` characters by dropping lower-case letters from the right, vowels first."""
    chars = list(name.replace(" ", ""))
    for droppable in ("aeiou", "abcdefghijklmnopqrstuvwxyz"):
        for j in range(len(chars) - 1, 0, -1):
            if len(chars) <= width:
                break
            if chars[j] in droppable:
                del chars[j]
    return "".join(chars)
