"""Figures as files: a `Picture` drawn by matplotlib, in the field's habit, for a paper.

matplotlib is imported when called. Files of the same picture are the same to the last byte.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from analysis.figures.page import figure_of
from analysis.figures.picture import Picture
from analysis.render.latex import latex_text
from hybrid.spec import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS: Final = ("png", "svg", "pdf", "json")
DEFAULT_FORMATS: Final = ("png", "svg")
DEFAULT_WIDTH: Final = 7.0
_STYLE: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",  # it comes with matplotlib: the same letters on every machine
    "text.hinting": "none",  # widths are then the same at any resolution, and in every format
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,  # a row's name may hold dollar signs
    "svg.hashsalt": "hybrid-ablations",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
}
_DPI: Final = 200


def write(
    picture: Picture,
    directory: Path,
    *,
    name: str | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    width_in: float = DEFAULT_WIDTH,
    captioned: bool = True,
) -> tuple[Path, ...]:
    """Draw the picture into files `name`.png, .svg, .pdf, and its numbers into .json; gives where they are.

    Without `captioned`, title and caption go to `name`.tex instead, as a float for LaTeX. Raises ConfigError where the
    width has no room for the picture.
    """
    stem = name or picture.name
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    drawn = [form for form in formats if form != "json"]
    if drawn:
        paths += _drawn(picture, directory / stem, drawn, width_in, captioned)
    if "json" in formats:
        paths.append(directory / f"{stem}.json")
        paths[-1].write_text(as_json(picture), encoding="utf-8", errors="xmlcharrefreplace")
    if not captioned:
        paths.append(directory / f"{stem}.tex")
        paths[-1].write_text(as_float(picture, stem, width_in), encoding="utf-8", errors="xmlcharrefreplace")
    return tuple(paths)


def as_json(picture: Picture) -> str:
    """The numbers and words of the picture, unrounded."""
    return (
        json.dumps(
            asdict(picture) | {"panels": [{"kind": type(panel).__name__, **asdict(panel)} for panel in picture.panels]},
            indent=1,
            ensure_ascii=False,
            allow_nan=False,
        )
        .encode("utf-8", "replace")
        .decode()
        + "\n"
    )


def as_float(picture: Picture, stem: str, width_in: float) -> str:
    """A figure environment with the caption; \\includegraphics takes whichever format is there."""
    words = " ".join((f"{picture.title.rstrip('.')}.", *picture.caption))
    return (
        "\\begin{figure}\n  \\centering\n"
        f"  \\includegraphics[width={width_in:g}in]{{{stem}}}\n"
        f"  \\caption{{{latex_text(' '.join(words.split()))}}}\n"
        f"  \\label{{fig:{stem}}}\n"
        "\\end{figure}\n"
    )


def _drawn(picture: Picture, stem: Path, formats: Sequence[str], width_in: float, captioned: bool) -> list[Path]:
    with style(), warnings.catch_warnings():
        # A sign that the font has not is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("error", message="constrained_layout not applied")
        try:
            figure = figure_of(picture, width_in, captioned)
        except UserWarning as warning:
            if "constrained_layout" not in str(warning):
                raise
            problem = f"--width {width_in:g}: too narrow for this figure; expected more inches"
            raise ConfigError(problem) from None
        return save(figure, stem, formats)


def save(figure: "Figure", stem: Path, formats: Sequence[str]) -> list[Path]:
    """The figure as files, without what a writer would add of its own: versions and dates."""
    metadata: dict[str, dict[str, None]] = {
        "png": {"Software": None},
        "svg": {"Date": None},
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    }
    paths = [stem.with_name(f"{stem.name}.{form}") for form in formats]
    for path, form in zip(paths, formats, strict=True):
        figure.savefig(path, dpi=_DPI, metadata=metadata[form])
    return paths


@contextmanager
def style() -> Iterator[None]:
    """The same looks for everyone: a user's own settings of matplotlib change nothing."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield
