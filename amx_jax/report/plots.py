"""Curves as figures, drawn from arrays; knows nothing of classifiers, files or records."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # Matplotlib takes half a second to import, and most commands draw no curve
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colour-blind-safe palette without its yellow, which is too light for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
# As many as have no common divisor with the colours: 35 curves before two look the same.
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (6, 2, 1, 2)), (0, (6, 2, 1, 2, 1, 2)))
SIZE, DPI = (7.5, 4.2), 150  # inches, dots per inch


def retention_plot(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str, delta: float | None = None
) -> "Figure":
    """One line for each method: on how many backgrounds masks of an area keep the decision.

    Args:
        curves: by method, areas ``(k,)`` and retentions ``(k,)``, both in [0, 1], in the order that the
            key shall have. NaN leaves a gap; an area of 0 has no place on a log axis.
        title: above the plot.
        delta: δ, in [0, 1]; a dashed line is drawn at 1 − δ.

    Returns:
        The figure; :func:`amx_jax.report.encode.encode_figure` makes a file of it.

    Raises:
        ValueError: no curves, shapes that do not fit, or values outside [0, 1].

    Examples:
        >>> curves = {"amx": (np.array([0.1, 0.2]), np.array([0.5, 1.0]))}
        >>> retention_plot(curves, "four photos").axes[0].get_title()
        'four photos'
    """
    if not curves:
        raise ValueError("curves: found none, expected at least one")
    checked = {name: _curve(name, *curve) for name, curve in curves.items()}
    figure, axes = _axes(title, np.concatenate([areas for areas, _ in checked.values()]), delta)
    for index, (name, (areas, retention)) in enumerate(checked.items()):
        axes.plot(
            100 * areas,
            retention,
            color=COLOURS[index % len(COLOURS)],
            linestyle=DASHES[index % len(DASHES)],
            linewidth=1.8,
            marker="o" if len(areas) == 1 else "",  # a line of one point cannot be seen
            label=name,
        )
    return _with_key(figure)


def sufficiency_plot(
    areas: np.ndarray,
    retention: np.ndarray,
    bounds: np.ndarray | None = None,
    certified: tuple[float, float] | None = None,
    delta: float | None = None,
    title: str = "",
) -> "Figure":
    """One photo's nested masks, from its most certain pixels to all of them.

    Args:
        areas: of the masks, ``(k,)`` in [0, 1].
        retention: on which share of the backgrounds each keeps the decision, ``(k,)`` in [0, 1].
        bounds: certified lower bound of each retention, ``(k,)`` in [0, 1].
        certified: area and retention of the mask that is the explanation.
        delta: as of :func:`retention_plot`.
        title: above the plot.

    Returns:
        The figure; :func:`amx_jax.report.encode.encode_figure` makes a file of it.

    Raises:
        ValueError: shapes that do not fit, or values outside [0, 1].

    Examples:
        >>> figure = sufficiency_plot(np.array([0.1, 0.2]), np.array([0.5, 1.0]), certified=(0.2, 1.0))
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['nested masks', 'explanation: 20.0 %, 1.00']
    """
    areas, retention = _curve("retention", areas, retention)
    mark = _curve("certified", *([value] for value in certified or (np.nan, np.nan)))
    figure, axes = _axes(title, np.concatenate([areas, mark[0]]), delta)
    axes.plot(100 * areas, retention, color=COLOURS[0], marker=".", clip_on=False, label="nested masks")
    if bounds is not None:
        _, bounds = _curve("bounds", areas, bounds)
        axes.fill_between(
            100 * areas,
            bounds,
            retention,
            color=COLOURS[0],
            alpha=0.2,
            linewidth=0,
            label="down to the certified bound",
        )
    if certified:
        axes.plot(
            100 * mark[0],
            mark[1],
            color=COLOURS[1],
            marker="D",
            markersize=8,
            clip_on=False,  # it may be the whole image
            linestyle="",
            label=f"explanation: {100 * certified[0]:.1f} %, {certified[1]:.2f}",
        )
    return _with_key(figure)


def area_plot(areas: np.ndarray, title: str) -> "Figure":
    """How the areas of many masks are distributed.

    Args:
        areas: ``(n,)`` in [0, 1]; one of 0 has no place on a log axis.
        title: above the plot.

    Returns:
        The figure; :func:`amx_jax.report.encode.encode_figure` makes a file of it.

    Raises:
        ValueError: no areas, or values outside [0, 1].

    Examples:
        >>> figure = area_plot(np.array([0.01, 0.02, 0.3]), "three photos")
        >>> figure.legends[0].get_texts()[0].get_text()
        'median 2.0 %'
    """
    areas = np.asarray(areas, float)
    if not areas.size:
        raise ValueError("areas: found none, expected at least one")
    median = 100 * float(np.median(areas))
    areas, _ = _curve("areas", areas, np.zeros(areas.shape))
    figure, axes = _axes(title, areas[areas > 0], None)
    shown = np.maximum(100 * areas, axes.get_xlim()[0])
    axes.hist(shown, bins=np.geomspace(*axes.get_xlim(), 41).tolist(), color=COLOURS[0])
    axes.axvline(
        median, color=COLOURS[1], linestyle="--", linewidth=1.8, label=f"median {median:.1f} %"
    )
    axes.autoscale(axis="y")
    axes.locator_params(axis="y", integer=True)
    axes.set_ylabel("photos")
    return _with_key(figure)


def _curve(name: str, areas: Any, retention: Any) -> tuple[np.ndarray, np.ndarray]:
    areas, retention = np.asarray(areas, float), np.asarray(retention, float)
    if areas.shape != retention.shape or areas.ndim != 1:
        raise ValueError(f"{name}: found {areas.shape} and {retention.shape}, expected two (k,)")
    if any((values < 0).any() or (values > 1).any() for values in (areas, retention)):
        raise ValueError(f"{name}: found a value outside [0, 1]")
    areas = np.where(areas > 0, areas, np.nan)
    return areas, retention


def _axes(title: str, areas: np.ndarray, delta: float | None) -> tuple["Figure", "Axes"]:
    """An empty plot with room for these areas, its right end the whole image."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(SIZE, DPI, layout="constrained")  # no pyplot: its state is everyone's
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_xlim(100 * np.nanmin([*areas, 0.5]) * 0.9, 100)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("area of the mask, % of the pixels")
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("share of backgrounds that keep the decision")
    axes.set_title(title, parse_math=False)  # a file name may have a $
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if delta is not None:
        axes.axhline(
            1 - delta, color="0.35", linestyle="--", linewidth=1, label=f"1 − δ = {1 - delta:g}"
        )
    return figure, axes


def _with_key(figure: "Figure") -> "Figure":
    """The figure with its key to the right of the plot, where it hides no line."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside right upper", frameon=False, handlelength=3.5, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
