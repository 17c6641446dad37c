"""Records: what is written is read again, and what was changed by hand is found out."""

from __future__ import annotations

import dataclasses
import json
import math
import os

import pytest

from companion.experiments import records
from companion.experiments.records import Record, Records, Run


def make(seed=0, correct=90, method="dense", sparsity=None, **changes) -> Record:
    run = Run("toy", "smoke", method, seed, sparsity, {"epochs": 2})
    parts = {
        "result": {"test": {"correct": correct, "examples": 100, "loss": 0.5}},
        "curve": [{"epoch": 1, "test_accuracy": 0.5}, {"epoch": 2, "test_accuracy": correct / 100}],
        "measures": {"cka": {"layers": ["a", "b"], "columns": ["a", "b"], "values": [[1.0, 0.5], [0.5, 1.0]]}},
        "provenance": records.provenance("cpu", "2026-01-01T00:00:00+00:00", 1.0),
    }
    return Record(run, **{**parts, **changes})


MADE = records.provenance("cpu", "2026-01-01T00:00:00+00:00", 1.0)


def scored(**changes):
    """Parts of a record that was followed on held-out images, and is in order without `changes`."""
    curve = [{"epoch": n, "validation_accuracy": a, "validation_loss": 0.7} for n, a in ((1, 0.95), (2, 0.9))]
    held_out = {"correct": 90, "examples": 100, "loss": 0.7}
    result = {"validation": held_out, "best_validation": {"epoch": 1, "accuracy": 0.95}, **changes}
    return {"curve": curve, "result": result}


def test_round_trip(tmp_path):
    record = make(sparsity=0.95)
    path = record.save(tmp_path)
    assert path == tmp_path / "toy" / "smoke" / "dense-0.95-seed0.json"
    assert records.load(path) == record
    assert records.load(path).accuracy() == 0.9
    assert records.load(path).frame("cka").loc["a", "b"] == 0.5


def test_provenance_names_models_and_versions_but_no_host():
    seen = records.provenance("cpu", "now", 1.0, {"precision": "float32"})
    assert {*records.PROVENANCE, "how"} == set(seen) and seen["how"] == {"precision": "float32"}
    assert os.uname().nodename not in json.dumps({key: value for key, value in seen.items() if key != "processor"})
    assert seen["processor"] and seen["torch"] and seen["accelerator"] is None


def test_provenance_names_the_version_of_the_code_that_runs(monkeypatch):
    """A checkout before another one's installation on the path: the installed version is not that of the run."""
    monkeypatch.setattr("companion.__version__", "9.9.9")
    assert records.provenance("cpu", "now", 1.0)["companion"] == "9.9.9"


def test_processors_of_one_name_are_told_apart_by_their_model(tmp_path):
    """Seed 23 of `specificity` was begun on one "Intel(R) Xeon(R) Processor" and came out otherwise on another."""
    told, name = {}, "Intel(R) Xeon(R) Processor"
    for model in (167, 207):
        each = f"vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: {model}\nmodel name\t: {name}\n"
        (tmp_path / "cpuinfo").write_text("\n".join(f"processor\t: {core}\n{each}" for core in range(2)))
        told[model] = records._processor(tmp_path / "cpuinfo")
    assert told == {n: f"{name}, family 6, model {n}" for n in (167, 207)}
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")  # as on ARM
    elsewhere = records._processor(tmp_path / "none")
    assert elsewhere == records._processor(tmp_path / "cpuinfo") and elsewhere


def test_a_block_is_one_accelerator_where_there_is_one_else_one_processor():
    cpu, gpu = ({"processor": "A", "accelerator": name} for name in (None, "G"))
    assert records.block(cpu) == {"processor": "A", "precision": None}
    assert records.block(gpu) == records.block({**gpu, "processor": "B"}) == {"accelerator": "G", "precision": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"result": {"test": {"correct": 95, "examples": 100, "loss": 0.5}}}, "last epoch of the curve 0.9"),
        ({"result": {"test": {"correct": 9001, "examples": 10_000, "loss": 0.5}}}, "last epoch of the curve 0.9"),
        ({"result": {"test": {"correct": 101, "examples": 100, "loss": 0.5}}}, "101 correct of 100"),
        ({"result": {"test": {"correct": 0, "examples": 0, "loss": 0.5}}}, "0 correct of 0"),
        ({"curve": [{"epoch": 1}]}, "curve has 1 epochs, settings say 2"),
        ({"curve": [{"epoch": 1}, {"epoch": 3}]}, r"epochs \[1, 3\]"),
        ({"measures": {"cka": {"layers": ["a", "b"], "values": [[1.0, 0.5]]}}}, "not 2 × 2"),
        ({"measures": {"norm": [1.0, math.nan]}}, r"measures.norm\[1\] is not finite"),
        ({"provenance": {}}, "provenance lacks commit"),
        ({"provenance": {**MADE, "resumed": [{**MADE, "threads": None}]}}, r"provenance\.threads is None"),
        *(
            ({"provenance": {**MADE, name: value}}, rf"provenance\.{name} is {shown}")
            for name, value, shown in (
                ("processor", None, "None"),
                ("threads", "many", "'many'"),
                ("started", 5, "5"),
                ("clean", 1, "1"),
                ("wall_seconds", 0, "0"),
                ("wall_seconds", math.inf, "inf"),
                ("commit", ["x"], r"\['x'\]"),
            )
        ),
        (scored(best_validation={"epoch": 77, "accuracy": 0.99}), "that of the curve epoch 1 with 0.95"),
        (scored(best_validation={"epoch": 2, "accuracy": 0.9}), "that of the curve epoch 1 with 0.95"),
        (scored(validation={"correct": 90, "examples": 100, "loss": 0.1}), "loss 0.1, the last epoch of the curve 0.7"),
        (scored(validation={"correct": 90, "examples": 100, "loss": 0.7001}), "loss 0.7001, the last epoch"),
        ({"curve": [{"epoch": 1, "lr": "x"}, {"epoch": 2, "lr": 0.1}]}, r"curve\.lr is a number in some epochs only"),
    ],
)
def test_contradictions_are_found_and_not_saved(tmp_path, change, message):
    record = make(**change)
    assert records.problems(make()) == records.problems(make(**scored())) == []
    with pytest.raises(ValueError, match=message):
        # NaN is refused by JSON itself; the message must still be ours
        record.save(tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_a_record_over_the_limit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="200000 are allowed"):
        make(measures={"much": list(range(60_000))}).save(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a record"),
        ("[]", "not a record"),
        ('{"schema": 99}', "schema 99"),
        ('{"schema": 1, "run": {}}', "parts"),
    ],
)
def test_foreign_files_are_named(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"x\.json.*{message}"):
        records.load(path)


def test_a_writer_that_fails_midway_leaves_the_old_record(tmp_path, monkeypatch):
    path = make().save(tmp_path)
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        make(correct=80).save(tmp_path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_difference_of_two_methods_in_a_cell():
    made = Records([make(0, 90, "a", 0.9), make(1, 93, "a", 0.9), make(0, 89, "b", 0.9), make(1, 90, "b", 0.9)])
    assert made.difference("a", "b", sparsity=0.9).value == pytest.approx(0.02)
    assert made.difference("a", "c", sparsity=0.9) is None and made.difference("a", "b", sparsity=0.98) is None


def test_a_difference_is_not_run_only_where_no_seed_has_both():
    """A record that lacks what is compared, or a mixture of cells, is an error and no gap."""
    made = Records([make(0, 90, "a"), make(0, 89, "b")])

    def absent(record):
        raise ValueError(f"record {record.run} has no such level")

    with pytest.raises(ValueError, match="no such level"):
        made.difference("a", "b", absent)
    with pytest.raises(ValueError, match="not finite"):
        made.difference("a", "b", lambda record: math.nan)
    mixed = Records([make(0, 90, "a", 0.9), make(0, 80, "a", 0.98), make(0, 89, "b", 0.9)])
    with pytest.raises(
        ValueError, match=r"seeds \[0\] have several records, of \['toy/smoke/a-0.9', 'toy/smoke/a-0.98'\]"
    ):
        mixed.difference("a", "b")
    assert mixed.difference("a", "b", sparsity=0.9).value == pytest.approx(0.01)
    assert made.difference("a", "b", absent, sparsity=0.5) is None


def test_paired_difference_uses_shared_seeds_only():
    here = Records([make(0, 90), make(1, 92), make(2, 95)])
    there = Records([make(0, 89, "rst"), make(1, 90, "rst"), make(5, 10, "rst")])
    assert here.differences(there) == {0: pytest.approx(0.01), 1: pytest.approx(0.02)}
    assert here.differences(Records([make(9)])) == {}


def test_what_differs_by_rounding_is_no_effect():
    """A reading that sums in another order: .1 + .2 − .3 is 5.6e-17, three times alike, which no t-test doubts."""
    made = Records([make(seed, 90, method) for seed in range(3) for method in ("a", "b")])
    sums = {"a": 0.1 + 0.2, "b": 0.3}
    found = made.difference("a", "b", lambda record: sums[record.run.method])
    assert found is not None and found.value == 0 and found.p_value == 1
    small = made.difference("a", "b", lambda record: 1e-9 * record.run.seed * (record.run.method == "a"))
    assert small is not None and small.value == pytest.approx(1e-9)
    with pytest.raises(ValueError, match="not finite"):
        made.difference("a", "b", lambda record: math.inf)


def test_table_says_what_did_not_run():
    missing = Run("toy", "smoke", "rst", 0, 0.9, {"epochs": 2})
    table = Records([make(0, 90), make(1, 92)], [missing]).table()
    dense, rst = table.iloc[0], table.iloc[1]
    assert dense["mean"] == pytest.approx(0.91) and dense["seeds"] == 2 and dense["not run"] == 0
    assert rst["seeds"] == 0 and rst["not run"] == 1 and math.isnan(rst["mean"])


def test_one_names_what_is_there():
    with pytest.raises(ValueError, match="2 records fit"):
        Records([make(0), make(1)]).one(method="dense")
    assert Records([make(0), make(1)]).one(seed=1).run.seed == 1


def test_results_root_order(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RESULTS", str(tmp_path))
    assert records.results_root() == tmp_path
    assert records.results_root(tmp_path / "other") == tmp_path / "other"


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().run.seed = 3  # type: ignore[misc]
