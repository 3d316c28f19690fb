"""Tables for terminals and logs, by rich."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

__all__ = ["table"]


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None, color: bool = False) -> str:
    """The rows as text; columns whose entries are numbers, or a dash for none, stand right."""
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    cells = [[str(cell) for cell in row] for row in rows]
    out = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        numeric = all(row[i].lstrip("+-.")[:1].isdigit() or row[i] in ("", "-") for row in cells)
        out.add_column(name, justify="right" if numeric and cells else "left", no_wrap=True)
    for row in cells:
        out.add_row(*row)
    wide = sum(max(map(cell_len, column)) + 3 for column in zip(columns, *cells, strict=True))  # nothing is ever cut off
    console = Console(file=io.StringIO(), width=max(200, wide), force_terminal=color, markup=False, emoji=False)  # [ab] is a glob
    console.print(out)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())  # type: ignore[attr-defined]
