"""Tables on the terminal."""

from collections.abc import Iterable, Sequence

WIDTH = 100  # characters, where output is not a terminal


def table(headers: Sequence[str], rows: Iterable[Sequence[str | int | float]], *, decimals: int = 4) -> str:
    """A table for `print`: text on the left, integers as 12,345 and floats with `decimals` decimals on the right.

    Cells are wrapped to the width of the terminal; where output is not one, to WIDTH and without colours.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid, rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold"), list(rows)
    for header, column in zip(headers, zip(*rows, strict=True), strict=True):
        grid.add_column(Text(header), justify="left" if any(isinstance(cell, str) for cell in column) else "right")
    for row in rows:
        cells = [f"{cell:,}" if isinstance(cell, int) else cell for cell in row]
        grid.add_row(*(Text(f"{cell:.{decimals}f}" if isinstance(cell, float) else cell) for cell in cells))
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    with console.capture() as captured:
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
