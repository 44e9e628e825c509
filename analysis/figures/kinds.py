"""The kinds of figure that any request may have."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, final

from analysis.figures.against_cost import pareto_picture, quality_throughput_picture, training_cost_picture
from analysis.figures.blocks import dimensions_picture, positions_picture, weights_picture
from analysis.figures.lengths import cache_picture, needle_picture, position_loss_picture, throughput_picture
from analysis.figures.losses import curves_picture, final_picture, survival_picture
from analysis.figures.ours import Ours
from analysis.figures.picture import Picture
from analysis.load import Results
from analysis.tables import VAL_LOSS
from hybrid.decode import did_you_mean
from hybrid.spec import ConfigError

Maker = Callable[[Ours], Picture]


@final
@dataclass(frozen=True, kw_only=True)
class Kind:
    what: str
    make: Maker


KINDS: Final[Mapping[str, Kind]] = {
    "curves": Kind(what="loss against training tokens, and the final loss", make=curves_picture),
    "survival": Kind(what="seeds not yet solved against steps (probes)", make=survival_picture),
    "final": Kind(what="a final metric with intervals, a row a line", make=final_picture),
    "pareto": Kind(what="quality against cost or speed, with the front", make=pareto_picture),
    "quality-throughput": Kind(what="quality against decoding speed", make=quality_throughput_picture),
    "training-cost": Kind(what="FLOPs, training speed, memory", make=training_cost_picture),
    "throughput": Kind(what="decoding speed against the length", make=throughput_picture),
    "cache": Kind(what="decoding cache against the length", make=cache_picture),
    "position-loss": Kind(what="loss against the position", make=position_loss_picture),
    "needle": Kind(what="needles found, by depth and length", make=needle_picture),
    "weights": Kind(what="attention's weight by layer (gated blocks)", make=weights_picture),
    "positions": Kind(what="quality by where blocks stand", make=positions_picture),
    "dimensions": Kind(what="quality by attention's share of the width", make=dimensions_picture),
}


def default_kind(results: Results) -> str:
    """What the sweep's report asks for, else survival for probes and curves for others. Raises ConfigError."""
    asked = results.report.get("figure")
    if asked in (None, True):
        return "survival" if results.is_probe else "curves"
    if asked not in KINDS:
        raise ConfigError(f"sweep.report.figure = {asked}: expected the kind of a figure{did_you_mean(asked, KINDS)}")
    return str(asked)


def picture_of(ours: Ours, kind: str | None) -> Picture:
    """The figure of that kind; without one, of what the data are: final losses alone where no run logged any before.

    Raises ConfigError where there is nothing to draw.
    """
    chosen = kind or default_kind(ours.results)
    try:
        return KINDS[chosen].make(ours)
    except ConfigError:
        if kind is not None or chosen != "curves" or not any(group.numbers(VAL_LOSS) for group in ours.results.groups):
            raise
    return final_picture(ours)
