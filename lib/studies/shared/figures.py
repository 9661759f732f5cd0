"""The figures of the course, in one look: the same colour, marker and name for a format everywhere."""

from io import BytesIO

import matplotlib.pyplot as plt
import pandas as pd
import PIL.Image
import seaborn as sns
from IPython.display import Image, display
from matplotlib.figure import Figure
from PIL.PngImagePlugin import PngInfo

from lib.formats import ReasoningFormat

PALETTE = sns.color_palette("colorblind")
COLOURS: dict[str, tuple] = dict(zip(ReasoningFormat, PALETTE[:4], strict=True))
MARKERS: dict[str, str] = dict(zip(ReasoningFormat, "osD^", strict=True))
NAMES: dict[str, str] = dict(zip(ReasoningFormat, ("direct", "short CoT", "code", "long CoT"), strict=True))
METHODS = {"sft": "SFT", "grpo": "GRPO", "ada_grpo": "Ada-GRPO"}


def use_style() -> None:
    """Set the look of all figures, and let tables show whole sentences; call it once, in the set-up cell."""
    pd.set_option("display.max_colwidth", None)
    sns.set_theme(context="notebook", style="ticks", palette="colorblind")
    plt.rcParams.update({"figure.figsize": (7, 4), "figure.dpi": 100, "axes.grid": True, "grid.alpha": 0.3})


def show(figure: Figure, alt: str) -> None:
    """Display a figure as a PNG that carries its description, for readers who cannot see it.

    256 colours are plenty for lines and bars, and make the notebook's file a third of the size.
    """
    drawn, small, description = BytesIO(), BytesIO(), PngInfo()
    figure.savefig(drawn, format="png", bbox_inches="tight")
    plt.close(figure)
    description.add_text("Description", alt)
    image = PIL.Image.open(drawn).convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE)
    image.save(small, format="PNG", optimize=True, pnginfo=description)
    display(Image(small.getvalue(), format="png", alt=alt))
