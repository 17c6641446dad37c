"""Write the page *Speed* and its figure from the records of `tests/benchmarks/bench_speed.py`.

python scripts/speed.py
"""

from __future__ import annotations

import hashlib
import itertools
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
clock on the wall, which other programs disturb. The aims were set before these measurements; a ratio beyond its aim is
bold. On another processor the ratios differ: `make speed` measures them there and adds a column to this page.

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
batches save less than that here, since each brings the fixed costs of its matrices with it.
"""

PARTS = (*TITLES, "growth")
CURVES = {"layers": "layers", "examples": "examples", "width": "width", "batch": "examples in a batch"}
COLORS = (plots.BLUE, plots.VERMILION, plots.GREEN, plots.WINE)
Records = dict[str, dict[str, Any]]  # of one processor, by part


def records() -> dict[str, Records]:
    """What `bench_speed.py` wrote, by processor."""
    found = {}
    for folder in sorted(path for path in RECORDS.iterdir() if path.is_dir()):
        made = {part: json.loads((folder / f"{part}.json").read_text()) for part in PARTS}
        name = made["cka"]["provenance"]["processor"].replace("(R)", "").replace(" Processor", "")
        found[name] = made
    return found


def where() -> str:
    """Processor, threads, versions and days, one sentence for each."""
    said = []
    for name, made in records().items():
        given = [part["provenance"] for part in made.values()]
        days = sorted({one["started"][:10] for one in given})
        one = given[0]
        said.append(
            f"{name}: {one['threads']} thread{'s' * (one['threads'] != 1)}, torch {one['torch']}, commit "
            f"{' and '.join(sorted({each['commit'][:7] for each in given}))}, {' to '.join(days)}."
        )
    if len({part["provenance"]["commit"] for made in records().values() for part in made.values()}) > 1:
        said.append("Where the commits differ, so may the code: compare a line with its aim, not with its neighbour.")
    return "\n".join(said)


def lines(made: Records) -> list[dict[str, Any]]:
    return [line for part in TITLES for line in made[part]["lines"]]


def missed(line: dict[str, Any]) -> bool:
    """Whether the ratio that the page shows is above the aim."""
    return float(ratio(line["ratios"])) > line["aim"]


def ratio(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f}"


def cell(line: dict[str, Any]) -> str:
    """The median, bold beyond the aim, and both ends."""
    mark = "**" if missed(line) else ""
    return f"{mark}{ratio(line['ratios'])}{mark} ({min(line['ratios']):.2f}–{max(line['ratios']):.2f})"


def rows(part: str) -> list[list[str]]:
    columns = [{(line["what"], line["against"]): line for line in made[part]["lines"]} for made in records().values()]
    return [
        [*key, f"{line['aim']:.2f}", *(cell(column[key]) if key in column else "not run" for column in columns)]
        for key, line in columns[0].items()
    ]


def tally() -> str:
    """How many aims are reached, at the head of the page."""
    said = []
    for name, made in records().items():
        reached = sum(not missed(line) for line in lines(made))
        said.append(f"Of {len(lines(made))} aims {reached} are reached on the {name}.")
    return "\n".join(said)


def in_words() -> str:
    """What the figure shows, for those who do not see it."""
    said = []
    for name, made in records().items():
        for what, points in made["growth"]["curves"].items():
            values = ", ".join(f"{ratio(point['ratios'])} at {point['at']}" for point in points)
            said.append(f"{name}, {CURVES[what]}: {values}")
    return "Curves of CKA's time over the forward pass's. " + "; ".join(said) + "."


def picture() -> Figure:
    """A panel for each number that grows, a curve for each processor."""
    figure, axes = plt.subplots(2, 2, figsize=(5.2, 4.4), sharey=True)
    for color, (name, made) in zip(itertools.cycle(COLORS), records().items()):
        for axis, (what, points) in zip(axes.flat, made["growth"]["curves"].items(), strict=True):
            at = [point["at"] for point in points]
            middle = [statistics.median(point["ratios"]) for point in points]
            ends = [
                [value - min(point["ratios"]) for value, point in zip(middle, points, strict=True)],
                [max(point["ratios"]) - value for value, point in zip(middle, points, strict=True)],
            ]
            look = {"marker": "o", "markersize": 4, "linewidth": 1.2, "capsize": 2, "label": name}
            axis.errorbar(at, middle, ends, color=color, **look)
            axis.set_xscale("log")
            axis.set_xticks(at, [str(value) for value in at])
            axis.minorticks_off()
            axis.set(xlabel=CURVES[what])
    for axis in axes.flat:
        axis.axhline(1, color=plots.GREY, linewidth=0.8)
    for axis in axes[:, 0]:
        axis.set(ylabel="× the forward pass")
    axis.set(ylim=(0, 1.05 * axis.get_ylim()[1]))  # of all four
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def digest() -> str:
    """A hash of what the figure shows: by it a test sees whether the picture is current."""
    curves = {name: made["growth"]["curves"] for name, made in records().items()}
    return hashlib.sha256(json.dumps(curves).encode()).hexdigest()


def page() -> str:
    """The page's text."""
    found = records()
    rounds = " or ".join(sorted({str(part["rounds"]) for made in found.values() for part in made.values()}))
    parts = [HEAD.format(rounds=rounds, where=where(), tally=tally())]
    head = ["", "against", "aim", *found]
    parts += [title + "\n" + table(head, rows(part)) for part, title in TITLES.items()]
    return "\n".join([*parts, GROWTH.format(alt=in_words(), rounds=rounds)])


def main() -> None:
    """Write the page and its figure."""
    write_aside(PAGE, page())
    with plt.rc_context(plots.STYLE):
        drawn = picture()
        said = {"Description": digest(), **plots.text_size(drawn)}
        write_aside(PICTURE, lambda file: drawn.savefig(file, format="png", dpi=200, metadata=said))


if __name__ == "__main__":
    main()
