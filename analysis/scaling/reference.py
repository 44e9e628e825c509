"""The paper's own question by its own 71 runs: does the hybrids' compute-optimal slope lie between those of Transformer
and Mamba?

Asked by each method, in each convention of cost, of all sizes and without each. The exponent a of N_opt ~ C^a is meant:
of how much larger models should become with more compute. It is said to lie between where both differences, to the
Transformer's and to Mamba's, are told from zero and have opposite signs; not to, where it is told to lie beyond one of
the two; else it is undecided.
"""

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, final

from analysis.scaling import show
from analysis.scaling.diagnostics import Diagnosis, diagnose
from analysis.scaling.points import CONVENTIONS, Convention, Point, Points, clusters, of_paper
from analysis.scaling.study import Isoflop, Parametric, Settings, Study, Told, isoflop, parametric

TRANSFORMER: Final = "Llama"
MAMBA: Final = "Mamba"
HYBRIDS: Final = ("Inter-H", "Intra-H")
_MODELS: Final = (TRANSFORMER, *HYBRIDS, MAMBA)
# Rows of Table 18 that are one model by symmetry: how far runs of 1B lie apart (`python -m analysis reference`).
_NOISE_TABLE: Final = "18"
_ONE_SIZE: Final = math.log(1.25)
_RESAMPLES_ROUGH: Final = 1000

Verdict = Literal["between", "not between", "undecided", "no exponent"]


@final
@dataclass(frozen=True, kw_only=True)
class Asked:
    """One way to ask. `slopes`: a and its interval by architecture; `verdicts` by hybrid; `order` by estimate alone."""

    method: str
    convention: Convention
    sizes: str
    noise: str
    slopes: dict[str, tuple[float | None, tuple[float, float] | None]]
    used: dict[str, int]
    verdicts: dict[str, Verdict]

    @property
    def order(self) -> str:
        known = [(slope, name) for name, (slope, _) in self.slopes.items() if slope is not None]
        return " < ".join(name for _, name in sorted(known))

    def estimated_between(self, hybrid: str) -> bool | None:
        values = [self.slopes[name][0] for name in (TRANSFORMER, hybrid, MAMBA)]
        low, middle, high = values
        if low is None or middle is None or high is None:
            return None
        return min(low, high) < middle < max(low, high)


@final
@dataclass(frozen=True, kw_only=True)
class Answer:
    asked: tuple[Asked, ...]
    studies: dict[tuple[str, Convention], "Study[Isoflop] | Study[Parametric]"]
    diagnoses: dict[tuple[str, Convention], Diagnosis]
    noise: str
    level: float


def answer(settings: Settings, told: Told | None = None) -> Answer:
    """Everything. `settings.noise` replaces that of the paper's replicates."""
    if settings.noise is None:
        sd, df = _replicate_noise()
        given = replace(settings, noise=sd, noise_df=float(df))
        noise = f"{sd:.4f} nats, of rows of Table {_NOISE_TABLE} (1B) that are one model, {df} degrees of freedom"
    else:
        given, noise = settings, f"{settings.noise:g} nats, as given"
    points = {convention: of_paper(convention) for convention in CONVENTIONS}
    asked: list[Asked] = []
    studies: dict[tuple[str, Convention], Study[Isoflop] | Study[Parametric]] = {}
    diagnoses: dict[tuple[str, Convention], Diagnosis] = {}
    ways: tuple[tuple[str, str, Settings], ...] = (
        ("isoflop akima", "replicates", given),
        ("isoflop akima", "residuals", replace(given, noise=None, noise_df=None)),
        ("isoflop quadratic", "replicates", replace(given, curve=replace(given.curve, method="quadratic"))),
        (
            "isoflop quadratic, all sizes",
            "replicates",
            replace(given, curve=replace(given.curve, method="quadratic", rule="inside", window=math.inf)),
        ),
        ("parametric huber", "replicates", given),
        ("parametric lad", "replicates", replace(given, estimator="lad")),
    )
    for convention in CONVENTIONS:
        for sizes, chosen in _without_each(points[convention]):
            for method, noise_name, way in ways:
                whole = sizes == "all"
                fit = isoflop if method.startswith("isoflop") else parametric
                rough = fit is parametric and (not whole or method == "parametric lad")
                used = replace(way, bootstrap=min(way.bootstrap, _RESAMPLES_ROUGH)) if rough else way
                if not whole and (noise_name == "residuals" or method == "parametric lad"):
                    continue
                study: Study[Isoflop] | Study[Parametric] = fit(chosen, used, told)
                asked.append(_ask(method, convention, sizes, noise_name, study))
                if whole and (method, noise_name) in (
                    ("isoflop akima", "replicates"),
                    ("parametric huber", "replicates"),
                ):
                    others = {other: points[other] for other in CONVENTIONS if other != convention}
                    studies[method, convention] = study
                    diagnoses[method, convention] = diagnose(study, others, base_name=f"{convention} convention")
    return Answer(asked=tuple(asked), studies=studies, diagnoses=diagnoses, noise=noise, level=settings.level)


def _replicate_noise() -> tuple[float, int]:
    from analysis.reference.compare import Sweeps
    from analysis.reference.findings import printed_noise
    from analysis.reference.printed import read_printed
    from sweeps.compose import Composer

    with Composer() as composer:
        found = printed_noise(read_printed().tables[_NOISE_TABLE], Sweeps(composer))
    return found.sd_nats, found.dof


def _without_each(points: Points) -> list[tuple[str, Points]]:
    found = [("all", points)]
    for members in clusters((point.n for point in points.points), _ONE_SIZE):
        gone = {id(points.points[i]) for i in members}
        rest = replace(points, points=tuple(point for point in points.points if id(point) not in gone))
        found.append((f"without {_size(points.points[members[0]])}", rest))
    return found


def _size(point: Point) -> str:
    """As the paper calls it: the second word of a run's name."""
    return point.where.split(" ")[1]


def _ask(
    method: str, convention: Convention, sizes: str, noise: str, study: "Study[Isoflop] | Study[Parametric]"
) -> Asked:
    groups = {group.name: group for group in study.groups}
    slopes = {
        name: (groups[name].slope, groups[name].slope_interval) if name in groups else (None, None) for name in _MODELS
    }
    return Asked(
        method=method,
        convention=convention,
        sizes=sizes,
        noise=noise,
        slopes=slopes,
        used={
            name: len(group.fit.used) if isinstance(group, Isoflop) else len(group.points)
            for name, group in groups.items()
        },
        verdicts={hybrid: _verdict(study, hybrid) for hybrid in HYBRIDS},
    )


def _verdict(study: "Study[Isoflop] | Study[Parametric]", hybrid: str) -> Verdict:
    """Each of the two differences is told from zero by its own interval: both have to be, so that nothing is corrected
    (intersection-union); to lie beyond one of the two, one has to be."""
    from analysis.scaling.diagnostics import differences

    known = {group.name for group in study.groups if group.slope is not None and len(group.slope_draws)}
    if not {TRANSFORMER, MAMBA, hybrid} <= known:
        return "no exponent"
    told: dict[tuple[str, str], bool] = {}
    for (low, high), (_, begin, _) in differences(study).items():
        told[low, high], told[high, low] = begin > 0, False
    below_mamba, above_mamba = told[hybrid, MAMBA], told[MAMBA, hybrid]
    below_transformer, above_transformer = told[hybrid, TRANSFORMER], told[TRANSFORMER, hybrid]
    if (above_transformer and below_mamba) or (above_mamba and below_transformer):
        return "between"
    if (above_transformer and above_mamba) or (below_transformer and below_mamba):
        return "not between"
    return "undecided"


# --- shown -------------------------------------------------------------------------------------------


def as_text(found: Answer, *, bold: Callable[[str], str]) -> str:
    lines = [
        bold(
            "arXiv 2510.04800v3, Tables 14 and 15: does the hybrids' compute-optimal slope lie between those of "
            "Transformer and Mamba?"
        ),
        *show.wrapped(
            f"a of N_opt ~ C^a, {found.level:.0%} intervals; noise of a run: {found.noise}. One trunk a size: "
            "how far another seed would lie cannot be seen in these runs. Paper: C and N without the head; full: with "
            "it, the budgets in common interpolated along each size. Verdicts by intervals, each fit by itself.",
            "",
            "",
        ),
        "",
    ]
    lines.append(bold(f"Answer: {'; '.join(f'{hybrid}: {conclusion(found, hybrid)}' for hybrid in HYBRIDS)}."))
    for hybrid in HYBRIDS:
        lines += show.wrapped(f"{hybrid}: {_summary(found, hybrid)}", "", "  ")
    lines += show.wrapped("Order of the exponents by estimate alone: " + _orders(found), "", "  ")
    for (method, convention), diagnosis in found.diagnoses.items():
        first = [
            change for change in diagnosis.changes if "told apart, but" in change or "leaves its interval" in change
        ]
        if first:
            lines += ["", bold(f"what changes: {method}, {convention} convention")]
            for change in first:
                lines += show.wrapped(change, "- ", "  ")
    rows = [["method", "cost", "noise", "sizes", *_MODELS, "Inter-H is", "Intra-H is"]]
    for one in found.asked:
        cells = []
        for name in _MODELS:
            slope, interval = one.slopes[name]
            cells.append("-" if slope is None else f"{slope:.3f} {show.between(interval, 2)}")
        rows.append([one.method, one.convention, one.noise, one.sizes, *cells, *(one.verdicts[h] for h in HYBRIDS)])
    lines += ["", bold("all the ways it was asked"), *show.table(rows)]
    for (method, convention), study in found.studies.items():
        lines += ["", bold(f"=== {method}, {convention} convention ==="), ""]
        lines.append(show.as_text(study, found.diagnoses[method, convention], bold=bold).rstrip("\n"))
    return "\n".join(lines) + "\n"


def conclusion(found: Answer, hybrid: str) -> str:
    """One way to ask shows nothing that another takes back: all have to agree, on all sizes and in both conventions."""
    verdicts = {one.verdicts[hybrid] for one in found.asked if one.sizes == "all"}
    if verdicts == {"between"}:
        return "shown to lie between, by every fit to all sizes"
    if verdicts == {"not between"}:
        return "shown not to lie between, by every fit to all sizes"
    return "not shown: the ways to ask do not agree, or cannot tell"


def _summary(found: Answer, hybrid: str) -> str:
    parts = []
    for convention in CONVENTIONS:
        asked = [one for one in found.asked if one.convention == convention]
        whole = [one for one in asked if one.sizes == "all"]
        rest = [one for one in asked if one.sizes != "all"]
        parts.append(
            f"{convention} convention: of {len(whole)} fits to all sizes {_counted(whole, hybrid)}; of {len(rest)} "
            f"without one size {_counted(rest, hybrid)}"
        )
    return ". ".join(parts) + "."


def _counted(asked: list[Asked], hybrid: str) -> str:
    counts = Counter(one.verdicts[hybrid] for one in asked)
    estimated = sum(bool(one.estimated_between(hybrid)) for one in asked)
    said = ", ".join(
        f"{n} say {verdict}" if verdict != "no exponent" else f"{n} have no exponent" for verdict, n in counts.items()
    )
    return f"{said} ({estimated} put the estimate between)"


def _orders(found: Answer) -> str:
    counts = Counter((one.convention, one.order) for one in found.asked if one.sizes == "all")
    return "; ".join(f"{convention}: {order} ({n})" for (convention, order), n in counts.most_common())


def as_json(found: Answer) -> str:
    content: dict[str, Any] = {
        "question": "does the compute-optimal slope of the hybrids lie between those of Transformer and Mamba?",
        "conclusions": {hybrid: conclusion(found, hybrid) for hybrid in HYBRIDS},
        "noise": found.noise,
        "level": found.level,
        "answers": [
            {
                "method": one.method,
                "convention": one.convention,
                "sizes": one.sizes,
                "noise": one.noise,
                "a": {name: slope for name, (slope, _) in one.slopes.items()},
                "intervals": {
                    name: None if interval is None else list(interval) for name, (_, interval) in one.slopes.items()
                },
                "budgets_or_points": one.used,
                "order": one.order,
                "verdicts": one.verdicts,
                "estimated_between": {hybrid: one.estimated_between(hybrid) for hybrid in HYBRIDS},
            }
            for one in found.asked
        ],
        "studies": [
            {
                "method": method,
                "convention": convention,
                **json.loads(show.as_json(study, found.diagnoses[method, convention])),
            }
            for (method, convention), study in found.studies.items()
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write(found: Answer, directory: Path) -> list[Path]:
    """The figures of both conventions, and all of it as JSON."""
    from analysis.scaling.figures import write_figures

    directory.mkdir(parents=True, exist_ok=True)
    written = [directory / "scaling.json"]
    written[0].write_text(as_json(found), encoding="utf-8")
    for (method, convention), study in found.studies.items():
        written += write_figures(study, directory, name=f"{method.split(' ')[0]}_{convention}")
    return written
