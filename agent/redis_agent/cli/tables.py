"""Tables for people: coloured by rich on a terminal that has it, aligned plain text everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

Row = Sequence[str]


def plain(header: Row, rows: Iterable[Row]) -> str:
    """Columns aligned by spaces."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def show(header: Row, rows: Sequence[Row], *, styles: Sequence[str] = ()) -> None:
    """Print a table.

    Args:
        header: names of the columns.
        rows: the cells.
        styles: rich's style of each row.
    """
    if not sys.stdout.isatty():
        print(plain(header, rows))
        return
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(plain(header, rows))
        return
    table = Table(*header, box=None, pad_edge=False, header_style="bold")
    for index, row in enumerate(rows):
        table.add_row(*row, style=styles[index] if index < len(styles) else "")
    Console(highlight=False, markup=False).print(table)
