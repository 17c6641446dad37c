"""Figures: what a CKA map shows, that all maps share one scale, what the bars of a pruning report say, and that the
book's style is whole and readable."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import PATIENCE
from matplotlib.colors import to_rgb
from nbclient import NotebookClient
from PIL import Image
from scipy import stats

from companion import plots
from companion.experiments.statistics import mean
from companion.models import mlp
from companion.pruning import SET, RandomPruning

LAYERS = ["relu", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "linear"]


@pytest.fixture(autouse=True)
def figures() -> Iterator[None]:
    """Draw nowhere, in the book's style, and close everything."""
    matplotlib.use("agg")
    with matplotlib.rc_context():
        plots.style()
        yield
        plt.close("all")


def table(names: list[str], others: list[str] | None = None) -> pd.DataFrame:
    """CKA that falls with the distance in depth."""
    others = names if others is None else others
    distance = np.abs(np.subtract.outer(np.linspace(0, 1, len(names)), np.linspace(0, 1, len(others))))
    return pd.DataFrame(1 - distance, index=names, columns=others)


def texts(labels: list[plt.Text]) -> list[str]:
    return [label.get_text() for label in labels]


def boundaries(axis: plt.Axes) -> tuple[list[float], list[float]]:
    """Where the thin lines stand, across and down."""
    lines = [np.asarray(line.get_data(), dtype=float) for line in axis.lines]
    across = [line[1][0] for line in lines if line[1][0] == line[1][1]]
    down = [line[0][0] for line in lines if line[0][0] == line[0][1]]
    return across, down


# ------------------------------------------------------------------------------------------------------------ one map
def test_a_map_shows_the_values_with_the_layers_in_order() -> None:
    image = plots.cka_heatmap(table(LAYERS), title="ResNet")
    np.testing.assert_array_equal(image.get_array(), table(LAYERS).to_numpy())
    assert image.axes.yaxis_inverted()  # the first layer is at the top left, as in the table
    names = ["stem", *LAYERS[1:-1], "logits"]
    assert texts(image.axes.get_xticklabels()) == texts(image.axes.get_yticklabels()) == names
    assert image.axes.get_title(loc="left") == "ResNet"
    assert (image.axes.get_xlabel(), image.axes.get_ylabel()) == ("depth →", "← depth")


def test_layers_have_a_role_in_a_resnet_alone() -> None:
    """A net whose first layer is called "linear" began with its logits."""
    names = ["linear", "relu", "relu#2", "fc"]
    axis = plots.cka_heatmap(table(names)).axes
    assert texts(axis.get_xticklabels()) == texts(axis.get_yticklabels()) == names


@pytest.mark.parametrize("values", [[0.97, 1.0], [-0.3, 0.1], [0.0, 0.5]])
def test_colours_mean_the_same_in_every_map(values: list[float]) -> None:
    frame = pd.DataFrame([values, values[::-1]], index=["a", "b"], columns=["a", "b"])
    image = plots.cka_heatmap(frame)
    assert image.get_clim() == (0.0, 1.0)
    assert image.get_cmap().name == "viridis"
    assert image.to_rgba(-0.3) == image.to_rgba(0.0)  # a negative estimate looks like none


def test_stages_begin_at_thin_lines() -> None:
    assert boundaries(plots.cka_heatmap(table(LAYERS)).axes) == ([1, 3, 5, 6], [1, 3, 5, 6])
    assert boundaries(plots.cka_heatmap(table(["relu1", "relu2", "linear"])).axes) == ([], [])


def test_two_networks_make_a_rectangle_with_their_names() -> None:
    frame = table(LAYERS, LAYERS[:4]).rename_axis(index="tall", columns="short")
    axis = plots.cka_heatmap(frame, ax=plt.subplots()[1]).axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("short →", "← tall")
    assert boundaries(axis) == ([1, 3, 5, 6], [1, 3])
    assert len(axis.get_xticks()) == 4
    assert len(axis.get_yticks()) == 7


@pytest.mark.parametrize(("count", "most"), list(itertools.product((1, 2, 11, 12, 13, 29, 55, 60), (1, 2, 8, 12))))
def test_layer_names_are_thinned_evenly_and_the_last_stays(count: int, most: int) -> None:
    image = plots.cka_heatmap(table([f"block{i}" for i in range(count)]), labels=most, colorbar=False)
    shown = [int(place - 0.5) for place in image.axes.get_xticks()]
    assert len(shown) <= most
    assert shown[-1] == count - 1
    steps = np.diff(shown[:-1])
    assert (steps == steps[:1]).all()  # evenly, but for the gap before the last
    if count <= most:
        assert shown == list(range(count))


def test_a_dead_layer_is_grey_and_the_living_are_not() -> None:
    frame = table(LAYERS)
    frame.loc["layer2.0", :] = 0.0
    frame.loc[:, "layer2.0"] = 0.0
    cells = plots.cka_heatmap(frame)
    expected = np.zeros(frame.shape, dtype=bool)
    expected[3, :] = expected[:, 3] = True
    np.testing.assert_array_equal(np.ma.getmaskarray(cells.get_array()), expected)  # the ground shows through
    assert np.ptp(cells.axes.get_facecolor()[:3]) == 0  # no colour of the map is grey
    assert np.ptp(cells.get_cmap()(np.linspace(0, 1, 256))[:, :3], axis=1).min() > 0.1
    assert not np.ma.getmaskarray(plots.cka_heatmap(table(LAYERS)).get_array()).any()


def test_it_draws_where_it_is_told() -> None:
    figure, axes = plt.subplots(1, 2)
    image = plots.cka_heatmap(table(LAYERS), ax=axes[1], colorbar=False)
    assert image.axes is axes[1]
    assert plt.get_fignums() == [figure.number]
    assert not axes[0].collections
    assert axes[1].get_xlabel() == ""


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_table_that_is_not_finite_is_refused(broken: float) -> None:
    frame = table(LAYERS)
    frame.iloc[1, 2] = broken
    with pytest.raises(ValueError, match="finite values; got 1 values that are not"):
        plots.cka_heatmap(frame)


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(ValueError, match="empty table"):
        plots.cka_heatmap(pd.DataFrame())


@pytest.mark.parametrize("dpi", [50, 100, 200])
def test_long_names_are_whole_when_saved_in_any_style(dpi: int, tmp_path: Path) -> None:
    plt.rcdefaults()
    names = [f"model.encoder.layers.encoder_layer_{i}.self_attention" for i in range(12)]
    axis = plots.cka_heatmap(table(names), title="a network").axes
    width = axis.get_window_extent().width
    axis.figure.savefig(tmp_path / "map.png", dpi=dpi)
    pixels = plt.imread(tmp_path / "map.png")[:, :, :3]
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 1).all()  # nothing is cut: nothing touches an edge
    assert width > 0.3 * axis.figure.bbox.width  # and the map is no stamp


# --------------------------------------------------------------------------------------------------- seeds, with spread
def test_the_interval_is_students() -> None:
    values = [1.0, 2.0, 4.0, 7.0]
    expected = stats.t.interval(0.95, 3, loc=3.5, scale=np.std(values, ddof=1) / 2)
    assert plots.interval(values) == pytest.approx(expected)
    assert plots.interval(np.array(values)) == pytest.approx((mean(values).low, mean(values).high))
    assert np.isnan(plots.interval([1.0])).all()


def test_a_strip_shows_every_seed_their_mean_and_its_interval() -> None:
    rows = {"CKA-SR": [1.0, 2.0, 4.0, 7.0], "one seed": [0.5], "later": [], "FFR": [-1.0, -3.0]}
    axis = plots.strip(rows, colours={name: plots.BLUE for name in rows})
    assert texts(axis.get_yticklabels()) == list(rows) and axis.yaxis_inverted()
    dots = np.concatenate([c.get_offsets() for c in axis.collections])
    assert sorted(dots[:, 0].tolist()) == sorted(itertools.chain(*rows.values()))
    assert {round(float(y)) for y in dots[:, 1]} == {0, 1, 3}
    lines = [np.asarray(line.get_xydata(), dtype=float) for line in axis.lines]
    diamonds = [line for line, drawn in zip(lines, axis.lines, strict=True) if drawn.get_marker() == "D"]
    places = {(round(float(x), 9), round(float(y))) for line in diamonds for x, y in line if np.isfinite(x)}
    assert places == {(3.5, 0), (-2.0, 3)}
    ends = {round(float(x), 6) for line in lines for x in line[:, 0] if np.isfinite(x)}
    for values in (rows["CKA-SR"], rows["FFR"]):
        assert {round(end, 6) for end in plots.interval(values)} <= ends
    assert texts(axis.texts) == ["not run"]
    with pytest.raises(ValueError, match="rows=0"):
        plots.strip({})


# ------------------------------------------------------------------------------------------------------- several maps
@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (2, (1, 2)), (3, (2, 2)), (4, (2, 2))])
def test_several_maps_share_one_scale(count: int, shape: tuple[int, int]) -> None:
    figure = plots.cka_heatmaps({f"net {i}": table(LAYERS) for i in range(count)}, labels=4)
    axes = figure.axes
    drawn = [axis for axis in axes[:-1] if axis.collections]
    assert [axis.get_title(loc="left") for axis in drawn] == [f"net {i}" for i in range(count)]
    assert len(axes) == shape[0] * shape[1] + 1  # one colour bar
    assert axes[-1].get_xlabel() == "CKA"
    assert sum(not axis.axison for axis in axes) == shape[0] * shape[1] - count


def test_no_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="no tables"):
        plots.cka_heatmaps({})


# -------------------------------------------------------------------------------------------------- a pruning's report
def test_a_report_is_drawn_as_it_is() -> None:
    report = RandomPruning(mlp([64, 32, 16, 10]), None, 0.8).report()
    axis = plots.mask_report(report, title="random")
    (bars,) = axis.containers
    assert [bar.get_width() for bar in bars] == list(report["density"])
    assert texts(axis.get_yticklabels()) == ["linear1", "linear2", "linear3"]
    assert axis.yaxis_inverted()  # the first layer is on top
    assert texts(axis.texts) == [f"{a:,} of {w:,}" for a, w in zip(report["alive"], report["weights"], strict=True)]
    (line,) = axis.lines
    assert line.get_xdata()[0] == pytest.approx(0.2, abs=1e-3)
    assert axis.get_xlim() == (0, 1) and axis.get_title(loc="left") == "random"


def test_a_report_of_moving_masks_shows_where_they_have_been() -> None:
    sparsity = SET(mlp([64, 32, 10]), None, 0.8, every=1)
    sparsity.step()
    report = sparsity.report()
    axis = plots.mask_report(report, ax=plt.subplots()[1])
    been, now = axis.containers
    assert [bar.get_width() for bar in been] == list(report["explored"])
    assert [bar.get_width() for bar in now] == list(report["density"])
    assert (report["explored"] > report["density"]).all()


def test_what_is_no_report_is_refused() -> None:
    report = RandomPruning(mlp([64, 32, 10]), None, 0.8).report()
    with pytest.raises(ValueError, match=r"2 rows and lacks \['explored'\]"):
        plots.mask_report(report.drop(columns="explored"))
    with pytest.raises(ValueError, match="0 rows"):
        plots.mask_report(report.iloc[:0])


# --------------------------------------------------------------------------------------------------------------- style
def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    parts = np.asarray(to_rgb(colour))
    return float(np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_style_is_the_whole_style() -> None:
    plt.rcParams["lines.linewidth"] = 99
    plots.style()
    expected = matplotlib.rcParamsDefault.copy()
    expected.update(plots.STYLE)
    assert {key: plt.rcParams[key] for key in plots.STYLE} == {key: expected[key] for key in plots.STYLE}
    assert plt.rcParams["lines.linewidth"] < 99


def test_text_and_lines_can_be_read_on_white() -> None:
    assert contrast(plots.INK, "white") >= 7
    assert contrast(plots.GREY, "white") >= 4.5
    for colour in plots.STYLE["axes.prop_cycle"].by_key()["color"][:4]:
        assert contrast(colour, "white") >= 3


def test_lines_can_be_told_apart_by_those_who_see_two_colours() -> None:
    # Machado, Oliveira & Fernandes (2009), deuteranopia and protanopia, on linear RGB.
    simulations = {
        "deuteranopia": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.01182, 0.04294, 0.968881],
        ],
        "protanopia": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
    }
    colours = np.asarray([to_rgb(c) for c in plots.STYLE["axes.prop_cycle"].by_key()["color"][:4]])
    for matrix in simulations.values():
        seen = (colours**2.2 @ np.asarray(matrix).T).clip(0, 1) ** (1 / 2.2)
        for a, b in itertools.combinations(seen, 2):
            assert np.linalg.norm(a - b) > 0.25


# ---------------------------------------------------------------------------------------------------------------- glue
def test_glue_is_the_bundle_that_the_book_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    reader = pytest.importorskip("myst_nb.ext.glue")
    outputs: list[Any] = []

    def display(data: dict[str, str], *, raw: bool, metadata: dict[str, Any]) -> None:
        assert raw
        outputs.append(nbformat.v4.new_output("display_data", data=data, metadata=metadata))

    monkeypatch.setattr("IPython.display.display", display)
    plots.glue(bias=np.float32(0.9712), drop=-0.5, nothing=-0.001, exact="0.970")
    glued = dict(reader.extract_glue_data_cell(nbformat.v4.new_code_cell(outputs=outputs)))
    assert {key: output["data"]["text/plain"] for key, output in glued.items()} == {
        "bias": "'0.97'",
        "drop": "'−0.50'",
        "nothing": "'0.00'",
        "exact": "'0.970'",
    }


def test_a_notebook_s_figure_is_fine_and_says_how_small_its_text_is() -> None:
    cells = [
        "from companion import plots\nimport matplotlib.pyplot as plt\nplots.style()",
        "figure, axis = plt.subplots()\naxis.axvline(0.3, color=plots.WINE)\naxis.set_title('a', fontsize=7.5);",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=PATIENCE).execute()
    [output] = notebook.cells[1].outputs
    picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
    assert round(picture.info["dpi"][0]) == 2 * plots.STYLE["figure.dpi"]
    assert picture.info["Smallest text"] == "7.5 pt"
    assert output.metadata["image/png"]["width"] == picture.width // 2  # as Jupyter and Colab show it
    wine = np.abs(np.asarray(picture.convert("RGB")) / 255 - to_rgb(plots.WINE)).max(axis=2)
    assert (wine < 4 / 255).any()  # a colour of few pixels, too, is what it was


def test_a_figure_of_many_colours_keeps_them() -> None:
    ramp = np.linspace(0, 1, 64)
    figure, axis = plt.subplots()
    axis.imshow(np.stack([*np.meshgrid(ramp, ramp), np.full((64, 64), 0.5)], axis=-1))
    data, _ = plots._shown(figure) or (b"", {})
    assert Image.open(io.BytesIO(data)).mode == "RGB"
    axis.clear()
    data, _ = plots._shown(figure) or (b"", {})
    assert Image.open(io.BytesIO(data)).mode == "P"
    assert plots._shown(plt.figure()) is None
