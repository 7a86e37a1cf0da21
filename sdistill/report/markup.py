"""Pieces of HTML. Whatever comes from a run is escaped here, and nowhere else is HTML made of text."""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from sdistill.report.lookup import name
from sdistill.report.tables import Cell, Row, Table

ASSETS = Path(__file__).parent / "assets"


def escape(value: object) -> str:
    """Text that is safe in an element and in a quoted attribute."""
    return html.escape(str(value))


def number(value: float | None, digits: int, sign: str = "-") -> str:
    """A number with so many decimals and a real minus sign; a dash if it is undefined."""
    return "–" if value is None else format(value, f"{sign}.{digits}f").replace("-", "−")


def interval(low: float | None, high: float | None, digits: int, sign: str = "-") -> str:
    """`[low, high]`, or nothing."""
    if low is None or high is None:
        return ""
    return f"[{number(low, digits, sign)}, {number(high, digits, sign)}]"


def badge(text: str) -> str:
    """A verdict in its colour."""
    return f'<span class="badge {escape(text.replace(" ", "-"))}">{escape(text)}</span>'


def notices(sentences: Iterable[str]) -> str:
    """What is missing, one paragraph a sentence."""
    return "".join(f'<p class="missing">{escape(sentence)}</p>' for sentence in sentences)


def table(content: Table) -> str:
    """A table under its title, in a box that scrolls sideways."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in content.columns)
    foot = ""
    if content.foot:
        foot = f"<tfoot>{''.join(_row(content.columns, row) for row in content.foot)}</tfoot>"
    return (
        f"<h3>{escape(content.title)}</h3>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(content.title)}">'
        f'<table class="data">'
        f"<thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(_row(content.columns, row) for row in content.rows)}</tbody>{foot}</table></div>"
    )


def _row(columns: Sequence[str], row: Row) -> str:
    cells = []
    for column, cell in zip(columns, row, strict=True):
        if isinstance(cell, Cell):
            bounds = interval(cell.low, cell.high, cell.digits)
            cells.append(f'<td class="number">{number(cell.value, cell.digits)}<small>{bounds}</small></td>')
        else:
            cells.append(f"<td>{escape(name(cell) if column == 'condition' else cell)}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def forest(value: float, low: float | None, high: float | None, scale: float) -> str:
    """A difference as a dot with its interval, zero in the middle and ±`scale` at the edges."""

    def x(bound: float) -> str:
        return f"{max(-1.0, min(1.0, bound / scale)) * 76 + 80:.1f}"

    line = ""
    if low is not None and high is not None:
        line = f'<line class="interval" x1="{x(low)}" x2="{x(high)}" y1="8" y2="8"/>'
    return (
        '<svg class="forest" viewBox="0 0 160 16" aria-hidden="true">'
        f'<line class="zero" x1="80" x2="80" y1="0" y2="16"/>{line}'
        f'<circle cx="{x(value)}" cy="8" r="3.5"/></svg>'
    )


def fill(asset: str, **values: object) -> str:
    """The text of an asset with its `$names` replaced."""
    return Template(read(asset)).substitute(values)


def read(asset: str) -> str:
    """The text of an asset."""
    return (ASSETS / asset).read_text(encoding="utf-8")
