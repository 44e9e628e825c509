"""The claims: what each says (`claims.json`), and the predicate that takes it at its word."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from analysis.claims import cost, efficiency, quality, scaling, settings
from analysis.claims.parts import Part
from analysis.claims.source import Source

CLAIMS_FILE: Final = Path(__file__).parent / "claims.json"
Predicate = Callable[[Source], Part]


@final
@dataclass(frozen=True, kw_only=True)
class Claim:
    """`comparison` is what the statement implies; `predicate` makes parts of it that a source can be asked for."""

    id: str
    section: str
    statement: str
    comparison: str
    evidence: str
    predicate: Predicate


_PREDICATES: Final[Mapping[str, Predicate]] = {
    "C01": quality.hybrids_gain_up_to,
    "C02": quality.hybrids_beat_windows,
    "C03": efficiency.intra_points_are_not_dominated,
    "C04": quality.hybrids_gain_so_much,
    "C05": quality.mixtures_beat_homogeneous,
    "C06": quality.every_ratio_at_both_scales,
    "C07": cost.llama_takes_more_flops,
    "C08": cost.mamba_takes_fewer_flops,
    "C09": cost.mamba_has_more_parameters,
    "C10": cost.mamba_caches_less,
    "C11": cost.ratios_are_about_one_to_five,
    "C12": efficiency.fewer_flops_take_less_time,
    "C13": efficiency.hybrids_stay_fast_and_small,
    "C14": efficiency.windows_are_slower,
    "C15": efficiency.intra_is_faster_than_inter,
    "C16": efficiency.positions_extrapolate,
    "C17": efficiency.hybrids_find_needles,
    "C18": quality.experts_help_everywhere,
    "C19": cost.experts_multiply_parameters,
    "C20": scaling.compute_optimal,
    "C21": settings.four_scales_five_budgets,
    "C22": quality.one_to_one_is_best,
    "C23": quality.every_ratio_beats_both,
    "C24": quality.loss_rises_with_mamba,
    "C25": quality.attention_belongs_in_the_middle,
    "C26": quality.front_is_worse_than_pure,
    "C27": quality.normalise_and_do_not_scale,
    "C28": quality.subtract_or_concatenate,
    "C29": quality.beats_earlier_designs,
    "C30": quality.more_attention_dimensions_help,
    "C31": quality.more_intra_blocks_help,
    "C32": quality.scatter_and_never_sandwich,
    "C33": settings.limited_to,
    "C34": settings.figure_1_settings,
    "C35": settings.training_recipe,
    "C36": settings.averages_of_five,
    "C37": cost.tokens_follow_from_flops,
    "C38": cost.heads_are_halved,
    "C39": quality.the_recipe_does_not_matter,
}


def read_claims() -> tuple[Claim, ...]:
    """All claims, in order."""
    content = json.loads(CLAIMS_FILE.read_text(encoding="utf-8"))
    return tuple(Claim(**claim, predicate=_PREDICATES[claim["id"]]) for claim in content["claims"])
