"""Where labels go so that they cover neither each other nor the data: geometry alone, in any unit of length."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

_DIRECTIONS: Final = 12
_REACHES: Final = (0.0, 0.6, 1.4, 2.4, 3.6)
_ROUNDS: Final = 4
_BESIDE_OVER_AREA: Final = 0.002
_MOST_COVERED: Final = 0.12


@final
@dataclass(frozen=True)
class Box:
    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "Box") -> float:
        """The area that both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.top, other.top) - max(self.bottom, other.bottom)
        return wide * high if wide > 0 and high > 0 else 0.0

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.top - self.bottom)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The places moved as little as can be (in squares) until neighbours are at least `gap` apart; order is kept."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    # Blocks of labels that touch: how many, and the sum of where the first one of the block would like to be.
    blocks: list[tuple[int, float]] = []
    for i in order:
        n, total = 1, places[i]
        while blocks and blocks[-1][1] / blocks[-1][0] + blocks[-1][0] * gap > total / n:
            n_before, total_before = blocks.pop()
            total = total_before + total - n * n_before * gap
            n += n_before
        blocks.append((n, total))
    firsts = [total / n + k * gap for n, total in blocks for k in range(n)]
    moved = [0.0] * len(places)
    for i, place in zip(order, firsts, strict=True):
        moved[i] = place
    return moved


def within(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """`spread`, kept between `low` and `high` where there is room for all."""
    moved = spread(places, gap)
    order = sorted(range(len(places)), key=lambda i: (moved[i], places[i]))
    floor = low
    for i in order:
        moved[i] = max(moved[i], floor)
        floor = moved[i] + gap
    ceiling = high
    for i in reversed(order):
        moved[i] = min(moved[i], ceiling)
        ceiling = moved[i] - gap
    return moved


def beside(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    bounds: Box,
    clearance: float,
) -> list[Box]:
    """A box of each size near its anchor, on as little as can be of each other and of what is `taken`.

    Each in turn takes the best of places around its anchor, the nearer the better, in a few rounds.
    """
    return _settled(_candidates(anchors, sizes, taken, bounds, clearance))


def beside_with_room(
    wanted: Sequence[tuple[tuple[float, float], tuple[float, float], bool]],
    taken: Sequence[Box],
    bounds: Box,
    clearance: float,
) -> list[Box | None]:
    """`beside` for labels given as (anchor, size, needed); one that covers much and is not needed is left out: None."""
    anchors, sizes = [anchor for anchor, _, _ in wanted], [size for _, size, _ in wanted]
    candidates = _candidates(anchors, sizes, taken, bounds, clearance)
    left = list(range(len(wanted)))
    while True:
        boxes = _settled([candidates[i] for i in left])
        covered = {
            i: math.fsum(box.overlap(other) for other in (*taken, *boxes) if other is not box) / (box.area or 1.0)
            for i, box in zip(left, boxes, strict=True)
        }
        worst = max((i for i in left if not wanted[i][2]), key=lambda i: covered[i], default=None)
        if worst is None or covered[worst] <= _MOST_COVERED:
            break
        left.remove(worst)
    found = dict(zip(left, boxes, strict=True))
    return [found.get(i) for i in range(len(wanted))]


# A place that a label may have, and what it costs whichever places the others have.
_Candidate = tuple[Box, float]


def _candidates(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    bounds: Box,
    clearance: float,
) -> list[list[_Candidate]]:
    return [
        [(box, _cost(box, anchor, taken, bounds)) for box in _around(anchor, size, clearance)]
        for anchor, size in zip(anchors, sizes, strict=True)
    ]


def _settled(candidates: Sequence[Sequence[_Candidate]]) -> list[Box]:
    """The place of each label, when none would rather have another, or after a few rounds."""
    boxes = [places[0][0] for places in candidates]
    for round_ in range(_ROUNDS):
        before = list(boxes)
        for i, places in enumerate(candidates):
            others = [box for k, box in enumerate(boxes) if k != i and (round_ or k < i)]
            costs = [cost + math.fsum(box.overlap(other) for other in others) for box, cost in places]
            boxes[i] = places[costs.index(min(costs))][0]
        if round_ and boxes == before:
            break
    return boxes


def _around(anchor: tuple[float, float], size: tuple[float, float], clearance: float) -> list[Box]:
    (x, y), (wide, high) = anchor, size
    places = []
    for reach, step in itertools.product(_REACHES, range(_DIRECTIONS)):
        angle = 2 * math.pi * step / _DIRECTIONS
        far = clearance + reach * high
        # The box touches a circle around the anchor, at its side or corner that looks there.
        centre_x = x + math.cos(angle) * far + wide / 2 * _sign(math.cos(angle))
        centre_y = y + math.sin(angle) * far + high / 2 * _sign(math.sin(angle))
        places.append(Box(centre_x - wide / 2, centre_y - high / 2, centre_x + wide / 2, centre_y + high / 2))
    return places


def _sign(value: float) -> float:
    return 0.0 if abs(value) < 1e-9 else math.copysign(1.0, value)


def _cost(box: Box, anchor: tuple[float, float], taken: Sequence[Box], bounds: Box) -> float:
    covered = math.fsum(box.overlap(other) for other in taken)
    outside = box.area - box.overlap(bounds)
    x, y = (box.left + box.right) / 2, (box.bottom + box.top) / 2
    return covered + 4 * outside + _BESIDE_OVER_AREA * box.area * math.hypot(x - anchor[0], y - anchor[1])
