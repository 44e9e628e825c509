"""Colours, dashes and markers that are told apart without colour, and words as they are drawn."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito (2008), strongest contrast to white first; their yellow is left out: it vanishes in print.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
DASHES: Final[tuple[Any, ...]] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)), (0, (7, 2, 1.5, 2, 1.5, 2)))
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")
LEGEND_PT: Final = 7.5


def look(i: int) -> tuple[str, Any, str]:
    """Colour, dashes and marker of line i: neighbours differ in all; all pairs are used before any repeats."""
    n = len(COLOURS)
    return COLOURS[i % n], DASHES[(i + i // (n * len(DASHES))) % len(DASHES)], MARKERS[i % len(MARKERS)]


def ink(colour: str) -> str:
    """The colour dark enough for letters on white."""
    parts = [round(0.72 * int(colour[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#{:02x}{:02x}{:02x}".format(*parts)


def clean(text: str) -> str:
    """Without what no font, or no XML, has a sign for."""
    return "".join(c if c.isprintable() or c in "\n\u00a0" else "\ufffd" for c in text)


def wrapped(figure: "Figure", text: str, width_in: float, size: float, weight: str = "normal") -> str:
    """Broken into lines of at most this width as they are drawn, between words; a longer word is broken too."""
    lines: list[str] = []
    line = ""
    for word in _broken(figure, _words(text), width_in, size, weight):
        longer = f"{line} {word}" if line else word
        if line and text_width_in(figure, longer, size, weight) > width_in:
            lines.append(line)
            longer = word
        line = longer
    return "\n".join([*lines, line])


def _words(text: str) -> list[str]:
    """What may stand on lines of its own: a no-break space holds two words together."""
    return [word for word in text.replace("\n", " ").split(" ") if word]


def _broken(figure: "Figure", words: Iterable[str], width_in: float, size: float, weight: str) -> Iterable[str]:
    for word in words:
        while len(word) > 8 and text_width_in(figure, word, size, weight) > width_in:
            fits = max(8, int(len(word) * width_in / text_width_in(figure, word, size, weight)) - 1)
            yield word[:fits]
            word = word[fits:]
        yield word


def figure_of_axes(axes: "Axes") -> "Figure":
    """The page that the axes stand on: pictures have no figures within figures."""
    from matplotlib.figure import Figure

    figure = axes.figure
    assert isinstance(figure, Figure)
    return figure


def text_width_in(figure: "Figure", text: str, size: float, weight: str = "normal") -> float:
    from matplotlib.font_manager import FontProperties

    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    properties = FontProperties(size=size, weight=weight)
    width, _, _ = renderer.get_text_width_height_descent(text, properties, False)
    return float(width) / figure.dpi


def text_size(figure: "Figure", text: str, size: float) -> tuple[float, float]:
    """Width and height of lines of text, in pixels."""
    lines = text.split("\n")
    wide = max(text_width_in(figure, line, size) for line in lines) * figure.dpi
    return wide, len(lines) * 1.2 * size * figure.dpi / 72
