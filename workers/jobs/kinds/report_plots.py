"""Plots of a report's curves: PNG for screens, SVG for print."""

import io

import matplotlib
import numpy as np

from models.reports.core.base import Curve

matplotlib.use("Agg")


def render(curve: Curve) -> dict[str, bytes]:
    """{"png": ..., "svg": ...}; the same curve gives the same bytes."""
    import matplotlib.pyplot as plt

    with matplotlib.rc_context({"svg.hashsalt": "anamorph", "svg.fonttype": "none", "axes.grid": True}):
        figure, axes = plt.subplots(figsize=(6.4, 4.0), dpi=110, layout="constrained")
        try:
            widths = np.linspace(3.5, 1.5, len(curve.series)) if len(curve.series) > 1 else [1.5]
            for (name, values), width in zip(curve.series.items(), widths, strict=True):  # equal curves stay visible
                (line,) = axes.plot(curve.x, values, marker="o", markersize=2 + width / 2, linewidth=width, label=name)
                if band := curve.intervals.get(name):
                    low, high = zip(*band, strict=True)
                    axes.fill_between(curve.x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
            axes.set(title=curve.title, xlabel=curve.x_label, ylabel=curve.y_label)
            if curve.log_x:
                axes.set_xscale("log")
                axes.set_xticks(curve.x, [f"{value:g}" for value in curve.x])
                axes.minorticks_off()
            axes.legend(fontsize="small")
            return {kind: _saved(figure, kind) for kind in ("png", "svg")}
        finally:
            plt.close(figure)


def _saved(figure, kind: str) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=kind, metadata={"Software": None} if kind == "png" else {"Date": None, "Creator": None})
    return file.getvalue()
