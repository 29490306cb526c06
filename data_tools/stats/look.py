"""How the tables and pictures of all figures look."""

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter
from rich.box import SIMPLE_HEAD
from rich.table import Table

INK, LIGHT, WARM, FAINT = "#1f4e79", "#9dc3e6", "#c8553d", "#eeeeee"


def table_of(title: str, *columns: str) -> Table:
    """An empty table; all columns but the first are flush right."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def figure_of(width: float, height: float, title: str) -> Figure:
    """An empty picture, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    return figure


def in_percent(axis: Axis) -> None:
    """Write an axis of shares in percent."""
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def in_counts(axis: Axis) -> None:
    """Write an axis of counts with separators of thousands."""
    axis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))


def open_frame(*axes: Axes) -> None:
    """Draw no frame above and to the right."""
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)


def shortened(text: str, most: int) -> str:
    """A text of at most so many letters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
