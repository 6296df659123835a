"""Every figure of the report, in one style: legible in print and to the colour-blind."""

import json
import os
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from mnv3lib import provenance

COLOURS = mpl.color_sequences["petroff10"]  # made to be told apart with any colour vision (Petroff 2021)
MODEL_STYLE = {
    "v1": {"color": COLOURS[2], "marker": "s", "label": "MobileNet V1"},
    "v2": {"color": COLOURS[1], "marker": "^", "label": "MobileNet V2"},
    "v3_small": {"color": COLOURS[0], "marker": "o", "label": "MobileNet V3 Small"},
    "v3_large": {"color": COLOURS[4], "marker": "D", "label": "MobileNet V3 Large"},
}
STYLE = {
    "figure.dpi": 144,
    "figure.figsize": (7.5, 4.2),
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "image.interpolation": "nearest",
}


def use_style() -> None:
    """Make the style of the report matplotlib's default; the first cell of a notebook calls it."""
    mpl.rcParams.update(STYLE)


def show(figure: Figure, name: str, *, alt: str, caption: str, folder: str | os.PathLike = "../figures") -> None:
    """Write `folder`/`name`.png and show it in the notebook with its alternative text and its caption.

    alt: what the figure says, for a reader who cannot see it; caption: how to read it (Markdown). The file's metadata
    tell what made it: commit, versions, processor and time.
    """
    from IPython.display import Image, Markdown, display

    path = Path(folder) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    stamp = {"Title": name, "Description": alt, "Comment": caption, "Software": f"mnv3lib, {provenance.commit()}"}
    stamp["Source"] = json.dumps(provenance.environment())
    stamp["Creation Time"] = provenance.now()
    figure.savefig(path, metadata=stamp)
    plt.close(figure)
    display(Image(path.read_bytes(), width=round(figure.get_figwidth() * 96)), metadata={"image/png": {"alt": alt}})
    display(Markdown(f"*{caption}*"))
