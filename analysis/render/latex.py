"""LaTeX with booktabs, multirow and graphicx."""

from typing import Any, Final

from analysis.contrasts import Mark
from analysis.render.text import group_sizes, numeric, one_line, texts
from analysis.tables.table import Column, Table

PACKAGES: Final = ("booktabs", "graphicx", "multirow")
_ARROWS: Final = {"higher": r"$\uparrow$", "lower": r"$\downarrow$"}
_SPECIALS: Final = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",
    "]": "{]}",
    "`": r"\textasciigrave{}",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "…": r"\ldots{}",
    "\u00a0": "~",
}
_MATHS: Final = {
    "±": r"\pm",
    "−": "-",
    "×": r"\times",
    "·": r"\cdot",
    "≈": r"\approx",
    "≤": r"\leq",
    "≥": r"\geq",
    "≠": r"\neq",
    "→": r"\to",
    "↑": r"\uparrow",
    "↓": r"\downarrow",
    "∞": r"\infty",
    "Δ": r"\Delta",
    "α": r"\alpha",
    "β": r"\beta",
    "γ": r"\gamma",
    "δ": r"\delta",
    "ε": r"\epsilon",
    "θ": r"\theta",
    "λ": r"\lambda",
    "μ": r"\mu",
    "µ": r"\mu",
    "σ": r"\sigma",
}
# Letters with accents, which LaTeX knows how to set in its oldest encoding too.
_ACCENTED: Final = frozenset(
    "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿĀāČčĎďĚěĞğŁłŃńŇňŌōŐőŒœŘřŚśŞşŠšŤťŪūŮůŰűŹźŻżŽž"
)


def latex(table: Table[Any]) -> str:
    r"""A `table` float, no wider than the line, its notes below; needs \usepackage{booktabs,graphicx,multirow}."""
    alignment = "".join("r" if to_right else "l" for to_right in numeric(table))
    header = " & ".join(_header(column) for column in table.columns)
    notes = " ".join(map(latex_text, (*table.caption, *table.footnotes)))
    return "\n".join(
        [
            rf"% needs \usepackage{{{','.join(PACKAGES)}}}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(table.title)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            rf"{header} \\",
            r"\midrule",
            *_body(table),
            r"\bottomrule",
            r"\end{tabular}%",
            r"}",
            *([r"\par\smallskip", rf"{{\footnotesize\raggedright {notes}\par}}"] if notes else []),
            r"\end{table}",
            "",
        ]
    )


def latex_text(text: str) -> str:
    """Any text, escaped for LaTeX; a character that it cannot be trusted to set is named by its number."""
    return "".join(map(_character, one_line(text).replace("--", "-\u200c-")))


def _character(character: str) -> str:
    if character in _SPECIALS:
        return _SPECIALS[character]
    if character in _MATHS:
        return f"${_MATHS[character]}$"
    if character == "\u200c":  # keeps two hyphens from becoming a dash
        return "{}"
    if character.isascii() or character in _ACCENTED:
        return character
    return f"{{[}}U+{ord(character):04X}{{]}}"


def _body(table: Table[Any]) -> list[str]:
    lines: list[str] = []
    sizes = group_sizes(table)
    for line, line_marks, size in zip(texts(table), table.marks, sizes, strict=True):
        cells = [_marked(latex_text(text), mark) for text, mark in zip(line, line_marks, strict=True)]
        if table.grouped and size == 0:
            cells[0] = ""
        elif table.grouped and size > 1:
            cells[0] = rf"\multirow{{{size}}}{{*}}{{{cells[0]}}}"
        if table.grouped and size > 0 and lines:
            lines.append(r"\midrule")
        lines.append(" & ".join(cells) + r" \\")
    return lines


def _marked(text: str, mark: Mark | None) -> str:
    match mark:
        case "best":
            return rf"\textbf{{{text}}}"
        case "equivalent":
            return rf"{text}\,$^{{\approx}}$"
        case "undecided":
            return rf"{text}\,$^{{?}}$"
        case None:
            return text


def _header(column: Column[Any]) -> str:
    arrow = f" {_ARROWS[column.better]}" if column.better else ""
    return latex_text(column.header) + arrow
