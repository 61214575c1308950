"""Tables on the terminal."""

from collections.abc import Sequence

WIDTH = 80  # characters, where output is not a terminal


def table(headers: Sequence[str], rows: Sequence[Sequence[str | int | float]]) -> str:
    """A table for `print`: text left, 12,345 and 0.1235 right; without a terminal at most WIDTH and no colours."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header, cell in zip(headers, rows[0] if rows else headers, strict=False):
        grid.add_column(Text(header), justify="left" if isinstance(cell, str) else "right")
    for row in rows:
        cells = [f"{cell:,}" if isinstance(cell, int) else cell for cell in row]
        grid.add_row(*(Text(f"{cell:.4f}" if isinstance(cell, float) else cell) for cell in cells))
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    with console.capture() as captured:  # not printed by rich, which exits with 1 when a pipe is closed
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
