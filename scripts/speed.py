"""Write the page *Speed* and its figure from the records of `tests/benchmarks/bench_speed.py`.

python scripts/speed.py
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from status import table

from companion import plots
from companion._files import write_aside

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "tests" / "benchmarks" / "records"
PAGE = ROOT / "book" / "speed.md"
PICTURE = ROOT / "book" / "_static" / "speed.png"

HEAD = """\
# Speed

What the package costs beside what one would do without it. Every number is a ratio of two times that were taken one
after the other in the same round (for CKA the shorter of two turns each, for removal the shortest of three), and the
median of {rounds} rounds; beside it stand the lowest and the highest. Taken is the time of the process, not that of the
clock on the wall, which other programs disturb. The aims were set before these measurements; where one is missed, the
line says so. On another processor the ratios differ: `make speed` measures them there and writes this page anew.

{where}

{tally}
"""

TITLES = {
    "cka": """\
## CKA of all pairs of layers

ResNet-20, 512 noise images of 32 × 32 pixels in batches of 256; float32 features, float64 sums. `group=64` compares
examples only inside groups: the same estimand with a larger variance, and therefore not the default.
""",
    "steps": """\
## A training step with a penalty

ResNet-20, batch 128, SGD with momentum: forward pass, backward pass and update, all of it once more with the penalty.
The two CKA penalties compare every example of every batch. As published, CKA-SR looks at 8 examples of every fifth
batch, which is no line here, because it costs next to nothing.
""",
    "removal": """\
## Filters out of a network

Every second filter of each block's first convolution is zero, and goes. *Unchecked*: the coupling, the constants that
zeroed filters emit, the cut. *Checked*, as `prune_filters` does it: also the comparison with the network before, in
float64. torch-pruning finds the coupling and cuts; it keeps no constant and checks nothing.
""",
}

GROWTH = """\
## How CKA grows

The same ratio, CKA of all pairs to the bare forward pass, as one number grows and the others stay: ResNet-20 of width
8, all 20 layers, 256 examples in one batch.

```{{figure}} _static/speed.png
:alt: {alt}
:width: 520px

**The more layers are compared, the more CKA costs beside the forward pass; wider networks pay less.** Points are
medians of {rounds} rounds, bars reach from the lowest to the highest.
```

The ratio grows with the number of layers and does not change with that of batches. The work of a convolution grows with
the square of the width, that of a kernel matrix with the width itself: the wider the network, the less CKA adds. A
kernel matrix costs n² products for each feature, a batch of n examples therefore n for each example; yet smaller
batches are hardly cheaper here, since each brings the fixed costs of its matrices with it.
"""

PARTS = (*TITLES, "growth")
CURVES = {"layers": "layers", "examples": "examples", "width": "width", "batch": "examples in a batch"}


def record(part: str) -> dict[str, Any]:
    """What `bench_speed.py` wrote of a part."""
    return json.loads((RECORDS / f"{part}.json").read_text())


def where() -> str:
    """Processor, threads and versions, one sentence for each setting."""
    settings: dict[tuple[str, str, int], list[str]] = {}
    for part in PARTS:
        made = record(part)["provenance"]
        settings.setdefault((made["processor"], made["torch"], made["threads"]), []).append(made["started"][:10])
    return "\n".join(
        f"Measured on one processor, {processor}, with {threads} thread{'s' * (threads != 1)} and torch {torch} "
        f"({' to '.join(sorted({min(days), max(days)}))})."
        for (processor, torch, threads), days in settings.items()
    )


def lines() -> list[dict[str, Any]]:
    return [line for part in TITLES for line in record(part)["lines"]]


def missed(line: dict[str, Any]) -> bool:
    """Whether the ratio that the page shows is above the aim."""
    return float(ratio(line["ratios"])) > line["aim"]


def ratio(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f}"


def row(line: dict[str, Any]) -> list[str]:
    low, high = (f"{end(line['ratios']):.2f}" for end in (min, max))
    aim = f"aim {line['aim']:.2f}, " + ("**missed**" if missed(line) else "reached")
    return [line["what"], line["against"], ratio(line["ratios"]), f"{low} … {high}", aim]


def tally() -> str:
    """How many aims are reached, at the head of the page."""
    reached = sum(not missed(line) for line in lines())
    return f"Of {len(lines())} aims {reached} are reached and {len(lines()) - reached} are missed."


def in_words() -> str:
    """What the figure shows, for those who do not see it."""
    said = []
    for name, points in record("growth")["curves"].items():
        values = ", ".join(f"{ratio(point['ratios'])} at {point['at']}" for point in points)
        said.append(f"{CURVES[name]}: {values}")
    return "Four curves of CKA's time over the forward pass's. By " + "; by ".join(said) + "."


def picture() -> Figure:
    """A curve for each number that grows."""
    curves = record("growth")["curves"]
    figure, axes = plt.subplots(2, 2, figsize=(5.2, 4.2), sharey=True)
    for axis, (name, points) in zip(axes.flat, curves.items(), strict=True):
        at = [point["at"] for point in points]
        middle = [statistics.median(point["ratios"]) for point in points]
        ends = [
            [value - min(point["ratios"]) for value, point in zip(middle, points, strict=True)],
            [max(point["ratios"]) - value for value, point in zip(middle, points, strict=True)],
        ]
        axis.errorbar(at, middle, ends, color=plots.BLUE, marker="o", markersize=4, linewidth=1.2, capsize=2)
        axis.set_xscale("log")
        axis.set_xticks(at, [str(value) for value in at])
        axis.minorticks_off()
        axis.set(xlabel=CURVES[name])
        axis.axhline(1, color=plots.GREY, linewidth=0.8)
    for axis in axes[:, 0]:
        axis.set(ylabel="× the forward pass")
    axis.set(ylim=(0, 1.05 * axis.get_ylim()[1]))  # of all four
    return figure


def digest() -> str:
    """A hash of what the figure shows: by it a test sees whether the picture is current."""
    return hashlib.sha256(json.dumps(record("growth")["curves"]).encode()).hexdigest()


def page() -> str:
    """The page's text."""
    rounds = " or ".join(sorted({str(record(part)["rounds"]) for part in PARTS}))
    parts = [HEAD.format(rounds=rounds, where=where(), tally=tally())]
    head = ["", "against", "ratio", "lowest … highest", "aim"]
    parts += [
        title + "\n" + table(head, [row(line) for line in record(part)["lines"]]) for part, title in TITLES.items()
    ]
    return "\n".join([*parts, GROWTH.format(alt=in_words(), rounds=record("growth")["rounds"])])


def main() -> None:
    """Write the page and its figure."""
    write_aside(PAGE, page())
    with plt.rc_context(plots.STYLE):
        drawn = picture()
        said = {"Description": digest(), **plots.text_size(drawn)}
        write_aside(PICTURE, lambda file: drawn.savefig(file, format="png", dpi=200, metadata=said))


if __name__ == "__main__":
    main()
