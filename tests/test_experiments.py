"""The registry, the runner and the command line, on digits."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from types import MappingProxyType

import numpy as np
import psutil
import pytest
import scipy.linalg
import torch
from conftest import PATIENCE, ROOT
from held import kill_after_a_save

from companion import data, experiments, models, training
from companion.experiments import (
    EXPERIMENTS,
    Experiment,
    Outcome,
    Tier,
    Workplace,
    notebook,
    quantities,
    records,
    registry,
    runner,
    speed,
)
from companion.experiments.__main__ import main
from companion.experiments.distributions import known_information
from companion.experiments.recipes import completed
from companion.experiments.records import Run
from companion.experiments.trainings import _shrink
from companion.features import extract
from companion.regularizers import CKASparsity

TINY = {
    "dataset": "digits",
    "validation": 100,
    "model": "digits_net",
    "model_options": {"width": 4, "blocks": 2},
    "batch_size": 128,
    "epochs": 2,
    "schedule": "one_cycle",
    "lr": 0.1,
    "weight_decay": 5e-4,
}


@pytest.fixture
def toy(monkeypatch):
    """An experiment of two tiny trainings, in the registry for one test."""
    toy = Experiment("toy", "Does it run?", experiments.train, {"smoke": Tier(TINY, {"dense": {}}, seeds=(0, 1))})
    monkeypatch.setattr(registry, "EXPERIMENTS", MappingProxyType({"toy": toy}))
    return toy


@pytest.fixture
def place(tmp_path):
    return Workplace(device=torch.device("cpu"), work=tmp_path / "work")


@pytest.mark.parametrize("there", [True, False])
def test_runs_use_a_gpu_where_there_is_one(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert Workplace().device.type == ("cuda" if there else "cpu")


def test_registry_expands_to_distinct_json_runs():
    for experiment in EXPERIMENTS.values():
        assert set(experiment.tiers) <= set(experiments.TIERS) and experiment.question.endswith("?")
        for tier in experiment.tiers:
            runs = experiment.runs(tier)
            assert len({run.path for run in runs}) == len(runs)
            seeds = [run.seed for run in runs]  # seed by seed: a sweep that is cut short has whole ones
            assert list(dict.fromkeys(seeds)) == [seed for seed, _ in itertools.groupby(seeds)]
            for run in runs:
                assert Run(**json.loads(json.dumps(dataclasses.asdict(run)))) == run
    with pytest.raises(ValueError, match="no tier 'huge'"):
        EXPERIMENTS["dense_cifar10"].runs("huge")
    with pytest.raises(ValueError, match="experiment='nonsense' is unknown"):
        experiments.find("nonsense")


def test_every_experiment_has_a_dry_run():
    assert all("smoke" in experiment.tiers for experiment in EXPERIMENTS.values())


def test_training_run_becomes_a_record_and_is_not_repeated(toy, place, tmp_path, capsys):
    root = tmp_path / "results"
    run = toy.runs("smoke")[0]
    record = experiments.perform(run, place, root)
    assert record.run == run and len(record.curve) == 2 and records.problems(record) == []
    assert {"cka", "weights", "trajectory"} <= set(record.measures)
    assert record.result["test"]["examples"] == 360
    before = (root / run.path).read_bytes()
    assert experiments.perform(run, place, root) == record and (root / run.path).read_bytes() == before
    assert not list(place.work.rglob("*.pt*"))  # the checkpoint goes when the record is there
    again = experiments.perform(run, place, tmp_path / "again")
    assert again.result == record.result and again.measures == record.measures  # same seed, same numbers

    assert main(["status", "--results", str(root)]) == 0
    assert "toy smoke: 1 of 2 recorded" in capsys.readouterr().out
    assert main(["verify", "--results", str(root)]) == 0
    assert "1 records, all in order" in capsys.readouterr().out
    assert main(["table", "toy", "--tier", "smoke", "--results", str(root)]) == 0
    assert "dense" in capsys.readouterr().out
    replayed = experiments.load_or_run("toy", "smoke", results=root)
    assert len(replayed) == 1 and [missing.seed for missing in replayed.missing] == [1]


def test_verify_finds_what_was_changed_by_hand(toy, place, tmp_path, capsys):
    path = experiments.perform(toy.runs("smoke")[0], place, tmp_path) and tmp_path / toy.runs("smoke")[0].path
    content = json.loads(path.read_text())
    content["result"]["validation"]["correct"] += 1
    path.write_text(json.dumps(content))
    assert main(["verify", "--results", str(tmp_path)]) == 1
    seen = capsys.readouterr().out
    assert "result.validation has accuracy" in seen and "changed since it was written, says SHA256SUMS" in seen
    content["result"]["validation"]["correct"] -= 1
    content["run"]["settings"]["lr"] = 0.3
    path.write_text(json.dumps(content))
    assert main(["verify", "--results", str(tmp_path)]) == 1
    assert "settings are not the registry's" in capsys.readouterr().out
    path.write_text(path.read_text()[:-40])
    assert main(["verify", "--results", str(tmp_path)]) == 1
    assert "not a record" in capsys.readouterr().out


def test_verify_finds_a_change_that_contradicts_nothing(toy, place, tmp_path, capsys):
    """Consistent in itself, but not what was written: the hash index knows, and does not let it in again."""
    run = toy.runs("smoke")[0]
    experiments.perform(run, place, tmp_path)
    path = tmp_path / run.path
    content = json.loads(path.read_text())
    content["result"]["test"]["correct"] += 1
    path.write_text(json.dumps(content))
    for _ in range(2):
        assert main(["verify", "--results", str(tmp_path)]) == 1
        assert "changed since it was written" in capsys.readouterr().out
        assert main(["index", "--results", str(tmp_path)]) == 0
        assert "0 records entered, 1 listed" in capsys.readouterr().out
    path.rename(path.with_name("aside"))
    assert main(["verify", "--results", str(tmp_path)]) == 1
    assert f"{run.path}: listed in SHA256SUMS, but not there" in capsys.readouterr().out
    path.unlink(missing_ok=True)
    experiments.perform(run, place, tmp_path)  # made anew, it is listed anew
    assert main(["verify", "--results", str(tmp_path)]) == 0
    (tmp_path / "SHA256SUMS").unlink()
    assert main(["verify", "--results", str(tmp_path)]) == 1
    assert "not listed in SHA256SUMS" in capsys.readouterr().out
    assert main(["index", "--results", str(tmp_path)]) == 0 and main(["verify", "--results", str(tmp_path)]) == 0


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_verify_of_nothing_is_an_error(tmp_path, capsys, folder):
    (tmp_path / "empty").mkdir()
    assert main(["verify", "--results", str(tmp_path / folder)]) == 2
    said = capsys.readouterr()
    assert f"{folder} holds no record" in said.err and said.err.count("\n") == 1 and not said.out


def test_replay_of_nothing_says_how_to_run(toy, tmp_path):
    with pytest.raises(ValueError, match="run toy --tier smoke makes the records"):
        experiments.load_or_run("toy", "smoke", results=tmp_path)
    with pytest.raises(ValueError, match="mode='rerun' is unknown"):
        experiments.load_or_run("toy", "smoke", mode="rerun", results=tmp_path)


def test_run_mode_leaves_the_books_records_alone(toy, place, tmp_path):
    made = experiments.load_or_run("toy", "smoke", mode="run", seeds=[0], place=place, results=tmp_path / "book")
    assert len(made) == 1 and not (tmp_path / "book").exists()


@pytest.mark.slow
def test_a_run_in_other_hands_is_left_to_them(toy, place, tmp_path):
    run = toy.runs("smoke")[0]
    lock = (place.work / run.path).with_suffix(".run")
    lock.parent.mkdir(parents=True)
    holder = multiprocessing.get_context("spawn").Process(target=_hold, args=(str(lock), str(tmp_path / "held")))
    holder.start()
    try:
        while not (tmp_path / "held").exists():
            assert holder.is_alive()
            time.sleep(0.05)
        assert experiments.perform(run, place, tmp_path / "results") is None
        left = experiments.load_or_run("toy", "smoke", mode="run", seeds=[0], place=place)
        assert len(left) == 0 and left.missing == [run]
    finally:
        holder.kill()
        holder.join()
    assert experiments.perform(run, place, tmp_path / "results") is not None  # the lock dies with its holder


def _hold(lock, sign):
    from pathlib import Path

    from filelock import FileLock

    with FileLock(lock):
        Path(sign).touch()
        time.sleep(3600)  # the test kills it long before


# ------------------------------------------------------------------------------------------ what an interruption leaves
@pytest.fixture
def interrupted(toy, place, tmp_path, monkeypatch):
    """The first run of `toy`, stopped in its second epoch on machine A, at commit aaaa."""
    run, fit = toy.runs("smoke")[0], training.fit
    monkeypatch.setattr(records, "_processor", lambda: "machine A")
    monkeypatch.setattr(records, "_commit", lambda: ("aaaa", True))

    def stopping(*args, on_epoch, **options):
        def stop(entry):
            on_epoch(entry)
            if entry["epoch"] == 2:
                raise KeyboardInterrupt

        return fit(*args, on_epoch=stop, **options)

    monkeypatch.setattr(training, "fit", stopping)
    with pytest.raises(KeyboardInterrupt):
        experiments.perform(run, place, tmp_path)
    monkeypatch.setattr(training, "fit", fit)
    return run


def test_a_checkpoint_of_other_settings_is_refused(interrupted, toy, place, tmp_path, monkeypatch):
    changed = dataclasses.replace(toy, tiers={"smoke": Tier({**TINY, "label_smoothing": 0.3}, {"dense": {}})})
    monkeypatch.setattr(registry, "EXPERIMENTS", MappingProxyType({"toy": changed}))
    with pytest.raises(ValueError, match=r"\.pt is of other settings \(label_smoothing: 0\.0 there, 0\.3 here"):
        experiments.perform(changed.runs("smoke")[0], place, tmp_path)
    monkeypatch.setattr(registry, "EXPERIMENTS", MappingProxyType({"toy": toy}))
    (place.work / interrupted.path).with_suffix(".pt.begun").unlink()
    with pytest.raises(ValueError, match="begun: 'by an older version' there"):
        experiments.perform(interrupted, place, tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_a_resumed_run_says_where_it_began_and_where_it_went_on(interrupted, place, tmp_path, monkeypatch, capsys):
    saved = (place.work / interrupted.path).with_suffix(".pt")
    began = datetime.fromisoformat(json.loads(saved.with_suffix(".pt.begun").read_text())["sessions"][0]["started"])
    os.utime(saved, (began.timestamp() + 1000,) * 2)  # it last saved after so many seconds
    monkeypatch.setattr(records, "_processor", lambda: "machine B")
    monkeypatch.setattr(records, "_commit", lambda: ("bbbb", True))
    made = experiments.perform(interrupted, place, tmp_path).provenance
    (later,) = made["resumed"]
    assert (made["processor"], made["commit"], made["started"]) == ("machine A", "aaaa", began.isoformat())
    assert (later["processor"], later["commit"]) == ("machine B", "bbbb")
    assert made["wall_seconds"] == pytest.approx(1000 + later["wall_seconds"], rel=1e-3)
    assert experiments.problems(tmp_path) == [] and not list(place.work.rglob("*.pt*"))
    assert main(["import", str(tmp_path / interrupted.path), "--results", str(tmp_path / "here")]) == 2
    assert "no commit that made it, several" in capsys.readouterr().err


def test_a_damaged_note_beside_a_checkpoint_is_named(interrupted, place, tmp_path):
    note = (place.work / interrupted.path).with_suffix(".pt.begun")
    whole = note.read_text()
    for damaged in (b"\xff", whole[:40].encode(), b"[]", b"{}"):
        note.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"dense-seed0\.pt\.begun is damaged.*delete .*dense-seed0\.pt\* to begin"):
            experiments.perform(interrupted, place, tmp_path)
    note.write_text(whole)
    half = note.with_name(f".{note.name}.0123abcd.part")  # what SIGKILL leaves of its writer
    half.touch()
    assert experiments.perform(interrupted, place, tmp_path) is not None
    assert not list(place.work.rglob("*.part"))


def test_a_run_of_a_block_does_not_go_on_elsewhere(interrupted, toy, place, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "EXPERIMENTS", MappingProxyType({"toy": dataclasses.replace(toy, blocks=True)}))
    monkeypatch.setattr(records, "_processor", lambda: "machine B")
    said = runner.attempt(interrupted, place, tmp_path).said
    assert "dense-seed0 was begun with {'processor': 'machine A'" in said and "not {'processor': 'machine B'" in said
    monkeypatch.setattr(records, "_processor", lambda: "machine A")
    assert runner.attempt(interrupted, place, tmp_path).record is not None


def test_a_session_worked_until_it_last_saved_and_one_that_saved_nothing_did_not(toy, place, tmp_path):
    run, checkpoint = toy.runs("smoke")[0], place.work / "toy.pt"
    checkpoint.parent.mkdir(parents=True)
    for _ in range(2):
        (begun,) = runner._begin(run, place, checkpoint, tmp_path)
    start = datetime.fromisoformat(begun["started"]).timestamp()
    for name, seconds in (("toy.pt", 100), ("toy.pt.level0", 40), ("toy.pt.level1", 70)):
        (place.work / name).touch()
        os.utime(place.work / name, (0, start + seconds))
    first, second = runner._begin(run, place, checkpoint, tmp_path)
    assert (first["wall_seconds"], second["wall_seconds"]) == (100, 0)


def test_what_is_asked_for_is_above_what_the_tier_says():
    run, cpu = EXPERIMENTS["random_masks"].runs("laptop")[0], torch.device("cpu")
    places = [Workplace(device=cpu, how=how) for how in ({}, {"precision": "float32"})]
    assert [runner._how(run, place)["precision"] for place in places] == ["bfloat16", "float32"]


def test_the_commit_is_that_of_the_beginning(toy, place, tmp_path, monkeypatch):
    def perform(run, place):
        monkeypatch.setattr(records, "_commit", lambda: ("made meanwhile", False))
        return Outcome({"x": 1}, [], {})

    meanwhile = Experiment("toy", "?", perform, {"smoke": Tier({"a": 1}, {"dense": {}})})
    monkeypatch.setattr(registry, "EXPERIMENTS", MappingProxyType({"toy": meanwhile}))
    monkeypatch.setattr(records, "_commit", lambda: ("aaaa", True))
    made = experiments.perform(meanwhile.runs("smoke")[0], place, tmp_path).provenance
    assert (made["commit"], made["clean"], "resumed" in made) == ("aaaa", True, False)


COMMAND = [sys.executable, "-m", "companion.experiments"]
SWEEP = ["run", "dense_cifar10", "--tier", "smoke", "--seeds", "0", "--quiet", "--device", "cpu"]


@pytest.mark.slow
def test_a_killed_sweep_continues_to_the_same_record(tmp_path):
    """SIGKILL while a run is in progress; the next call resumes it, to the numbers of a run never interrupted."""

    def environment(name):
        variables = {"COMPANION_WORK": str(tmp_path / name), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return {**os.environ, **variables}

    def record(name):
        return records.load(tmp_path / name / "dense_cifar10" / "smoke" / "dense-seed0.json")

    arguments = [*SWEEP, "--results", str(tmp_path / "a")]
    kill_after_a_save([sys.executable], arguments, tmp_path, environment("work_a"))
    assert not list((tmp_path / "a").rglob("*.json"))  # the folder is tried before the training
    assert (tmp_path / "work_a" / "dense_cifar10" / "smoke" / "dense-seed0.pt").exists()
    for name in ("a", "b"):  # a: resumes; b: never interrupted
        command = [*COMMAND, *SWEEP, "--results", str(tmp_path / name)]
        subprocess.run(command, env=environment(f"work_{name}"), check=True)
    resumed, whole = record("a"), record("b")
    assert resumed.result == whole.result and resumed.measures == whole.measures


@pytest.mark.slow
def test_two_jobs_share_the_runs_of_a_sweep(tmp_path):
    command = [sys.executable, "-m", "companion.experiments", "run", "random_masks", "--tier", "smoke", "--jobs", "2"]
    environment = {**os.environ, "COMPANION_WORK": str(tmp_path / "work")}
    done = subprocess.run(
        [*command, "--results", str(tmp_path)], env=environment, check=True, capture_output=True, text=True
    )
    runs = EXPERIMENTS["random_masks"].runs("smoke")
    assert all(experiments.recorded(run, tmp_path) is not None for run in runs)
    for run in runs:  # each trained once; the other worker found it recorded, or in other hands
        assert sum("done in" in line for line in done.stdout.splitlines() if line.startswith(f"{run}:")) == 1


MASKS = [sys.executable, "-m", "companion.experiments", "run", "random_masks", "--tier", "smoke", "--device", "cpu"]


def _workers(parent: int) -> list[psutil.Process]:
    """The processes that a sweep has started to train in."""
    try:
        children = psutil.Process(parent).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.Error:  # one of them ended meanwhile
        return []


@pytest.mark.slow
@pytest.mark.parametrize("who", ["worker", "parent SIGTERM", "parent SIGKILL"])
def test_a_sweep_whose_processes_are_killed_says_so_and_leaves_none_behind(tmp_path, who):
    """A killed worker: exit status 1, and why. A killed parent: no worker goes on. The next call makes the rest."""
    environment = {**os.environ, "COMPANION_WORK": str(tmp_path / "work"), "OMP_NUM_THREADS": "1"}
    command = [*MASKS, "--jobs", "2", "--quiet", "--results", str(tmp_path)]
    sweep = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while len(workers := _workers(sweep.pid)) < 2 or not (tmp_path / "work" / "random_masks").is_dir():
        assert sweep.poll() is None, sweep.stderr.read()
        time.sleep(0.05)
    if who == "worker":
        workers[0].kill()
    else:
        sweep.send_signal(signal.SIGTERM if "TERM" in who else signal.SIGKILL)
    said = sweep.communicate(timeout=PATIENCE)[1]
    assert sweep.returncode != 0 and (who != "worker" or "a worker died" in said)
    assert not psutil.wait_procs(workers, timeout=PATIENCE)[1], "workers outlive their parent"
    done = subprocess.run([*MASKS, "--quiet", "--results", str(tmp_path)], env=environment, capture_output=True)
    assert done.returncode == 0
    assert all(experiments.recorded(run, tmp_path) for run in EXPERIMENTS["random_masks"].runs("smoke"))


def threads() -> ThreadPoolExecutor:
    """An executor of somebody's own."""
    return ThreadPoolExecutor(1)


def test_any_executor_makes_the_runs(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COMPANION_WORK", str(tmp_path / "work"))
    command = ["run", "toy", "--tier", "smoke", "--device", "cpu", "--quiet", "--results", str(tmp_path)]
    assert main([*command, "--executor", f"{__name__}:threads"]) == 0
    assert capsys.readouterr().out.count("done in") == 2
    assert main([*command, "--executor", "nothing"]) == 2 and "--executor nothing: unknown" in capsys.readouterr().err
    assert main([*command, "--executor", "no.such.module:f"]) == 2 and "no.such.module" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("executor", "message"),
    [("math:sqrt", "exactly one argument"), ("os:nosuch", "no attribute 'nosuch'"), ("os:getpid", "it returns ")],
)
def test_what_is_no_executor_is_a_message_and_a_status(toy, tmp_path, capsys, monkeypatch, executor, message):
    monkeypatch.setenv("COMPANION_WORK", str(tmp_path / "work"))
    command = ["run", "toy", "--tier", "smoke", "--device", "cpu", "--quiet", "--results", str(tmp_path)]
    assert main([*command, "--executor", executor]) == 2
    said = capsys.readouterr().err
    assert f"--executor {executor}: " in said and message in said and "concurrent.futures.Executor" in said


@pytest.mark.slow
def test_threads_of_one_process_do_not_share_their_random_numbers(toy, tmp_path):
    """Runs made by several threads at once are those made one after the other."""
    results = []
    for name, count in (("one", 1), ("several", 2)):
        place = Workplace(device=torch.device("cpu"), work=tmp_path / f"work-{name}")
        with ThreadPoolExecutor(count) as executor:
            made = executor.map(
                lambda run, p=place, n=name: experiments.perform(run, p, tmp_path / n), toy.runs("smoke")
            )
            results.append([record.result for record in made])
    assert results[0] == results[1]


@pytest.mark.long
def test_a_dask_cluster_on_this_machine_makes_the_runs(tmp_path):
    pytest.importorskip("distributed")
    command = [*COMMAND, *SWEEP, "--executor", "dask", "--results", str(tmp_path)]
    environment = {**os.environ, "COMPANION_WORK": str(tmp_path / "work"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0 and "dense-seed0: done in" in done.stdout, done.stderr
    assert experiments.recorded(EXPERIMENTS["dense_cifar10"].runs("smoke")[0], tmp_path) is not None


# -------------------------------------------------------------------------------------------- what a kill leaves behind
def test_a_run_killed_between_record_and_index_is_mended_by_the_next(toy, place, tmp_path, monkeypatch):
    run = toy.runs("smoke")[0]
    enlist = records.enlist
    monkeypatch.setattr(records, "enlist", lambda *args, **options: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        experiments.perform(run, place, tmp_path)
    monkeypatch.setattr(records, "enlist", enlist)
    half = (tmp_path / run.path).with_name(f".{run.path.name}.0123abcd.part")
    half.touch()
    found = experiments.problems(tmp_path)
    assert any("not listed" in problem for problem in found) and any("half a file" in problem for problem in found)
    assert experiments.perform(run, place, tmp_path) is not None
    assert experiments.problems(tmp_path) == [] and not half.exists()


def _enlist_many(folder, writer):
    from pathlib import Path

    from companion.experiments.records import enlist

    for number in range(10):
        path = Path(folder, "toy", "smoke", f"{writer}-{number}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{writer} {number}")
        enlist(folder, [path], anew=True)
        path.write_text(f"{writer} {number} anew")
        enlist(folder, [path], anew=True)


@pytest.mark.slow
def test_four_writers_lose_nothing_of_the_index(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_enlist_many, args=(str(tmp_path), writer)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    listed = records.index(tmp_path)
    assert len(listed) == 40 and all(digest == records.sha256(tmp_path / name) for name, digest in listed.items())
    assert records.listed_twice(tmp_path) == [] and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("which", ["results", "work"])
def test_a_folder_that_cannot_be_written_to_is_seen_before_the_training(toy, tmp_path, which):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, and no folder")  # permissions do not stop every user
    place = Workplace(device=torch.device("cpu"), work=blocked if which == "work" else tmp_path / "work")
    never = dataclasses.replace(toy, perform=lambda run, place: pytest.fail("it trained first"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "EXPERIMENTS", MappingProxyType({"toy": never}))
        with pytest.raises(ValueError, match=r"blocked.* cannot be written to \("):
            experiments.perform(toy.runs("smoke")[0], place, blocked if which == "results" else tmp_path / "results")


def test_without_a_home_the_folder_of_runs_must_be_named(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", homeless)
    monkeypatch.delenv("COMPANION_WORK", raising=False)
    with pytest.raises(ValueError, match="set COMPANION_WORK"):
        Workplace()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\xff\xfe", "not-a-record"),
        (b"[" * 100_000, "not a record"),
        ({"result": []}, "result is a list"),
        ({"curve": None}, "curve"),
        ({"curve": [1]}, "is a int"),
        ({"measures": {"cka": {"layers": 3, "values": 4}}}, "parts of other types"),
        ({"provenance": "none"}, "provenance is a str"),
        (None, "a folder"),
    ],
    ids=["bytes", "deep", "result", "curve", "epochs", "matrix", "provenance", "folder"],
)
def test_one_bad_file_hides_no_other(toy, place, tmp_path, capsys, content, problem):
    """Whatever stands in one file, the other one is judged, too."""
    first, second = toy.runs("smoke")
    experiments.perform(second, place, tmp_path)
    good, bad = tmp_path / second.path, tmp_path / first.path
    changed = json.loads(good.read_text())
    changed["result"]["test"]["correct"] = 10**6
    good.write_text(json.dumps(changed))
    if content is None:
        bad.mkdir()
    elif isinstance(content, bytes):
        bad.write_bytes(content)
    else:
        bad.write_text(json.dumps({**changed, **content, "schema": 1}))
    assert main(["verify", "--results", str(tmp_path)]) == 1
    seen = capsys.readouterr().out
    assert "dense-seed0.json" in seen and "1000000 correct of" in seen
    assert problem == "not-a-record" or problem in seen


def test_a_damaged_index_is_named_with_the_remedy(toy, place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COMPANION_WORK", str(place.work))
    experiments.perform(toy.runs("smoke")[0], place, tmp_path)
    index = tmp_path / records.INDEX
    for damage in (lambda: index.write_bytes(b"\xff\xfe"), lambda: (index.unlink(), index.mkdir())):
        damage()
        for command in ("verify", "index", "run toy --tier smoke --device cpu --seeds 0"):
            assert main([*command.split(), "--results", str(tmp_path)]) == 2
            said = capsys.readouterr().err
            assert f"{index} is damaged" in said and "enters the records anew" in said


def test_a_line_that_stands_twice_in_the_index_is_found(toy, place, tmp_path):
    experiments.perform(toy.runs("smoke")[0], place, tmp_path)
    index = tmp_path / records.INDEX
    index.write_text(2 * index.read_text())
    assert experiments.problems(tmp_path) == [f"{toy.runs('smoke')[0].path}: listed twice in SHA256SUMS"]


@pytest.mark.slow
def test_the_commit_is_the_projects_own_or_none(tmp_path):
    """The package copied into another repository does not take its commit for its own."""
    shutil.copytree(ROOT / "companion", tmp_path / "companion", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "pyproject.toml"], ["commit", "-q", "-m", "theirs"]):
        subprocess.run([*git, *command], check=True)
    asked = "from companion.experiments import records; print(records.__file__, records._commit())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert str(tmp_path) in done.stdout and "(None, None)" in done.stdout, done.stderr


def test_a_copy_that_pip_does_not_know_has_no_commit(monkeypatch):
    """A folder unpacked from an archive: the record of a finished run says so, and is not lost."""

    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", unknown)
    assert records._installed_from() is None


def test_one_seed_has_no_interval_and_a_curve_is_one_line(toy, place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COMPANION_WORK", str(tmp_path / "work"))
    command = ["run", "toy", "--tier", "smoke", "--seeds", "0", "--device", "cpu", "--quiet", "--results"]
    assert main([*command, str(tmp_path)]) == 0
    assert f"1 of 1 runs are recorded in {tmp_path}" in capsys.readouterr().out
    assert main(["table", "toy", "--tier", "smoke", "--results", str(tmp_path)]) == 0
    seen = capsys.readouterr().out
    assert "one seed" in seen and "inf" not in seen
    (record,) = found = experiments.load_or_run("toy", "smoke", results=tmp_path)
    assert found.curves("loss")["dense-seed0"].tolist() == [entry["loss"] for entry in record.curve]
    with pytest.raises(ValueError, match="has no 'lost' in epochs"):
        found.curves("lost")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "mps"])
def test_a_device_that_is_not_there_is_one_sentence(device, capsys, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["run", "dense_cifar10", "--tier", "smoke", "--device", device])
    assert f"argument --device: {device}:" in capsys.readouterr().err.replace("'", "")


@pytest.mark.parametrize("option", ["--job", "--seed", "--quie"])
def test_an_abbreviated_option_is_refused(option, capsys):
    with pytest.raises(SystemExit):
        main(["run", "dense_cifar10", "--tier", "smoke", option, "2"])
    assert f"unrecognized arguments: {option}" in capsys.readouterr().err


def test_a_run_that_diverges_does_not_stop_the_others(toy, place, tmp_path, monkeypatch, capsys):
    def perform(run, place):
        if run.seed == 0:
            raise FloatingPointError("loss of epoch 1: NaN")
        return experiments.train(run, place)

    monkeypatch.setattr(registry, "EXPERIMENTS", MappingProxyType({"toy": dataclasses.replace(toy, perform=perform)}))
    monkeypatch.setenv("COMPANION_WORK", str(tmp_path / "work"))
    assert main(["run", "toy", "--tier", "smoke", "--device", "cpu", "--quiet", "--results", str(tmp_path)]) == 1
    seen = capsys.readouterr()
    assert "dense-seed0: diverged: loss of epoch 1: NaN" in seen.out and "dense-seed1: done in" in seen.out
    assert "1 of 2 runs are recorded" in seen.err


@pytest.mark.parametrize("command", [["status"], ["table", "dense_cifar10"], ["verify"], ["index"]], ids=lambda c: c[0])
def test_a_mistyped_folder_of_results_is_an_error(tmp_path, capsys, command):
    assert main([*command, "--results", str(tmp_path / "typo")]) == 2
    assert "typo" in capsys.readouterr().err


def test_nonsense_on_the_command_line_is_a_message_and_a_status(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COMPANION_WORK", str(tmp_path / "work"))
    with pytest.raises(SystemExit):
        main(["run", "toy", "--shard", "3/2"])
    for seed in ("-1", "1.5", "²"):
        with pytest.raises(SystemExit):
            main(["run", "toy", "--tier", "smoke", "--seeds", seed, "--results", str(tmp_path)])
        assert f"{seed!r}: a whole number of at least 0" in capsys.readouterr().err
    assert main(["run", "toy", "--tier", "smoke", "--shard", "9/9", "--device", "cpu", "--results", str(tmp_path)]) == 0
    assert "--shard 9/9: there is nothing to do, of 2 runs none" in capsys.readouterr().err
    assert main(["run", "toy", "--tier", "smoke", "--jobs", "0", "--results", str(tmp_path)]) == 2
    assert "--jobs 0" in capsys.readouterr().err


def test_a_size_of_nothing_and_a_folder_for_a_record_are_a_message_and_a_status(tmp_path, capsys):
    assert main(["pace", "--size", "0"]) == 2 and "size=0 must be at least 1" in capsys.readouterr().err
    (tmp_path / "toy" / "smoke" / "x.json").mkdir(parents=True)
    assert main(["index", "--results", str(tmp_path)]) == 2 and "x.json: a folder" in capsys.readouterr().err


def test_shards_are_a_partition():
    runs = EXPERIMENTS["published_cka"].runs("paper")
    parts = [runs[i - 1 :: 3] for i in (1, 2, 3)]
    assert sorted(r.name for part in parts for r in part) == sorted(r.name for r in runs)


def test_missing_data_is_a_message_and_a_status(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COMPANION_WORK", str(tmp_path / "work"))
    empty = tmp_path / "empty"
    empty.mkdir()
    command = ["run", "published_cka", "--tier", "paper", "--device", "cpu", "--data", str(empty)]
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", _no_network)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", _no_network)
    assert main([*command, "--results", str(tmp_path)]) == 2
    assert "error:" in capsys.readouterr().err


def _no_network(*args, **kwargs):
    raise OSError("no network")


def test_published_maps_on_digits(place, tmp_path):
    run = EXPERIMENTS["published_cka"].runs("smoke")[0]
    record = experiments.perform(run, place, tmp_path)
    layers = ["relu", "layer1.0", "layer1.1", "layer1.2", "layer1.3", "linear"]
    for name in ("cka", "cka_biased", "cka_pooled"):
        frame = record.frame(name)
        assert list(frame.index) == layers
        assert (abs(frame.to_numpy().diagonal() - 1) < 1e-3).all() and (frame == frame.T).all().all()
    geometry = record.measures["geometry"]
    assert [len(points) for points in geometry["points"]] == [100] * len(layers)
    assert all(geometry["labels"].count(label) == 10 for label in range(10))


@pytest.mark.slow
def test_the_sockets_are_filled_from_the_settings(place, tmp_path):
    run = next(r for r in EXPERIMENTS["random_masks"].runs("smoke") if r.method == "random+cka_sr")
    record = experiments.perform(run, place, tmp_path)
    layers = record.measures["weights"]["layers"]
    maskable = sum(math.prod(layer["shape"]) for layer in layers)
    assert record.result["zeros"] == sum(layer["zeros"] for layer in layers) == maskable - round(0.1 * maskable)
    assert all(-1 <= epoch["cosine_loss_cka"] <= 1 and epoch["penalty_cka"] != 0 for epoch in record.curve)
    wrong = dataclasses.replace(run, settings={**run.settings, "penalties": [{"kind": "Wishful"}]})
    with pytest.raises(ValueError, match="kind='Wishful' is unknown"):
        experiments.train(wrong, place)


def test_without_a_held_out_split_the_test_set_is_followed_and_the_last_epoch_reported(place):
    settings = EXPERIMENTS["random_masks"].runs("smoke")[0].settings
    run = Run("toy", "smoke", "random", 0, 0.9, {**settings, "validation": 0, "epochs": 2})
    outcome = experiments.train(run, place)
    accuracies = [epoch["test_accuracy"] for epoch in outcome.curve]
    assert outcome.result["test"]["correct"] == round(accuracies[-1] * outcome.result["test"]["examples"])
    assert outcome.result["best_test"]["accuracy"] == max(accuracies) and "validation" not in outcome.result


@pytest.mark.slow
def test_granet_gets_the_length_of_the_training(place):
    run = next(r for r in EXPERIMENTS["granet"].runs("smoke") if r.method == "granet")
    outcome = experiments.train(run, place)
    layers = outcome.measures["weights"]["layers"]
    maskable = sum(math.prod(layer["shape"]) for layer in layers)
    assert outcome.result["zeros"] == maskable - round(0.1 * maskable)  # all prunings came before the end


@pytest.mark.slow
def test_an_interrupted_lottery_goes_on_at_its_level(place, monkeypatch):
    run = next(r for r in EXPERIMENTS["lottery"].runs("smoke") if r.method == "lottery+aug_cka_sr")
    whole = experiments.lottery(run, dataclasses.replace(place, work=place.work / "whole"))
    assert [round(level["sparsity"], 3) for level in whole.result["levels"]] == [0, 0.684, 0.9]

    fit, trained = training.fit, []

    def failing(model, *args, **options):
        trained.append(int(sum((p == 0).sum() for p in model.parameters() if p.ndim > 1)))
        if len(trained) == 2:
            raise KeyboardInterrupt
        return fit(model, *args, **options)

    monkeypatch.setattr(training, "fit", failing)
    with pytest.raises(KeyboardInterrupt):
        experiments.lottery(run, place)
    again = experiments.lottery(run, place)
    assert (again.result, again.measures) == (whole.result, whole.measures)
    assert len(trained) == 4  # level 0 once, level 1 twice, level 2 once
    assert trained[1] == trained[2] > trained[0]


def test_chosen_strengths_are_the_best_on_held_out_images():
    """The strengths in the registry are what the recorded selection says, and its seed is reported nowhere else."""
    selection = experiments.load_or_run("random_masks_strengths")
    assert not selection.missing
    best = {}
    for record in selection:
        penalty = record.run.settings["penalties"][0]
        found = (record.accuracy("validation"), penalty["beta"])
        best[penalty["kind"]] = max(best.get(penalty["kind"], (0.0, 0.0)), found)
    for name in ("random_masks", "granet", "lottery"):
        runs = EXPERIMENTS[name].runs("laptop")
        assert not {run.seed for run in runs} & {record.run.seed for record in selection}
        for run in runs:
            for penalty in run.settings.get("penalties", []):
                assert penalty["beta"] == best[penalty["kind"]][1], run


@pytest.mark.parametrize("experiment", ["dense_penalties", "dense_penalties_vgg"])
def test_strengths_of_dense_nets_are_the_best_once_pruned(experiment):
    """Each penalty got three strengths; used is the one that leaves most on held-out images, averaged over levels."""
    selection = experiments.replay(f"{experiment}_strengths")
    if selection.missing:
        assert not experiments.replay(experiment), f"{experiment} ran before its strengths were chosen"
        pytest.skip(f"{experiment}_strengths: {len(selection.missing)} runs are not recorded")
    tried: dict[str, list[records.Record]] = {}
    for record in selection:
        tried.setdefault(record.run.method.rpartition("_")[0], []).append(record)
    assert {len(of) for penalty, of in tried.items() if penalty} == {3}
    best = {
        penalty: max(of, key=quantities.pruned_on_average).run.settings["penalties"]
        for penalty, of in tried.items()
        if penalty
    }
    runs = EXPERIMENTS[experiment].runs("laptop")
    assert not {run.seed for run in runs} & {record.run.seed for record in selection}
    for run in runs:
        names = [] if run.method == "none" else run.method.split("+")
        wanted = completed({"penalties": [penalty for name in names for penalty in best[name]]})["penalties"]
        assert run.settings.get("penalties", []) == wanted, run


def test_gradient_cosines_of_known_gradients_and_no_trace(device):
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3)).to(device)
    model.eval()
    x, y = torch.randn(20, 4, device=device), torch.arange(20, device=device) % 3
    weight = model[2].weight

    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    found = quantities.gradient_cosines(
        model, x, y, {"up": weight.sum, "down": lambda: -2 * weight.sum(), "aside": model[0].weight.sum}
    )
    assert found["cosine_up_down"] == -1 and found["cosine_up_aside"] == 0
    assert found["cosine_loss_up"] == -found["cosine_loss_down"] and abs(found["cosine_loss_up"]) < 1
    assert not model.training and torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        weight[0] = 0  # as under a mask: what would move it moves nothing
    found = quantities.gradient_cosines(model, x, y, {"alive": lambda: weight[1:].sum(), "all": weight.sum})
    assert found["cosine_alive_all"] == pytest.approx(1, abs=1e-4)


def test_gradient_cosines_are_of_a_batch_in_training_as_a_penalty_last_saw_it(device):
    """Batch norm by the batch's own statistics; a penalty of every fifth step at the strength of that step."""
    model = models.digits_net(width=4, blocks=2).to(device).eval()
    x, y = torch.randn(32, 1, 8, 8, device=device), torch.arange(32, device=device) % 10
    weight = model.conv1.weight
    trained = copy.deepcopy(model).train()
    gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(trained(x), y), list(trained.parameters()))
    alive = [(g * (p != 0)).flatten() for g, p in zip(gradients, trained.parameters(), strict=True)]
    whole = torch.cat(alive).double().norm()
    cosine = gradients[0].double().sum() / whole / weight.numel() ** 0.5  # with that of the sum of the first weights
    penalty = CKASparsity(model, beta=lambda step: 0.1 * (step == 5), every=5)
    penalty.load_state_dict({"calls": 7})
    found = quantities.gradient_cosines(model, x, y, {"sum": weight.sum, "cka": penalty})
    assert found["cosine_loss_cka"] != 0 and penalty.calls == 7
    assert found["cosine_loss_sum"] == pytest.approx(float(cosine), rel=1e-3)


class Same(torch.nn.Module):
    """A block that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Identity()

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("noise", [0.25, 0.5])
def test_information_has_the_noise_that_is_asked_for(noise):
    """One normal number in two blocks, with noise in both: I = −½ ln(1 − ρ²), ρ = 1/(1 + noise²). What is known of the
    image by the kernel matrix written out; of the label, less the mean over classes of the same within each."""
    torch.manual_seed(1)  # not the noise's own
    x, labels = torch.randn(999, 1, dtype=torch.float64), torch.arange(999) % 3
    x = (x - x.mean()) / x.std(correction=0) + labels[:, None]
    found = quantities.information(torch.nn.Sequential(Same(), Same()), x, labels, noise)
    scaled = (x - x.mean()) / x.std(correction=0)

    def known(part):
        return float(-(-torch.cdist(part, part).square() / (2 * noise**2)).exp().mean(1).log().mean())

    about = known(scaled), known(scaled) - sum(known(scaled[labels == c]) for c in range(3)) / 3
    assert [found["about_image"][0], found["about_label"][0]] == pytest.approx(about, rel=1e-3)
    shared = -0.5 * math.log(1 - (1 + noise**2) ** -2)
    assert found["gaussian"]["values"][0][1] == pytest.approx(shared, abs=0.12)  # four standard errors


def test_information_of_blocks_ignores_scale_and_survives_dead_layers(device):
    """Layers × layers of I(T_i; T_j), and a number a layer about the image and the label, none of them infinite."""
    torch.manual_seed(0)
    model = models.digits_net(width=4, blocks=3).to(device).eval()
    images, labels = torch.randn(120, 1, 8, 8, device=device), torch.arange(120, device=device) % 10
    found = quantities.information(model, images, labels)
    layers = ["relu", "layer1.0", "layer1.1", "layer1.2", "linear"]
    table = torch.tensor(found["gaussian"]["values"])
    assert found["layers"] == found["gaussian"]["layers"] == layers and table.shape == (5, 5)
    assert torch.equal(table, table.T) and float(table.diagonal().abs().max()) == 0
    assert float(table[1, 2]) > float(table[0, 4])  # neighbours know more of each other
    assert all(0 <= value <= math.log(120) + 1e-3 for value in found["about_image"])
    block = extract(model, images, "layer1.0", reduce="average_pool")["layer1.0"].double()
    block = (block - block.mean(0)) / (block - block.mean(0)).norm(dim=1).square().mean().sqrt()
    bound = -(-torch.cdist(block, block).square() / (2 * 0.25**2)).exp().mean(1).log().mean()
    assert found["about_image"][1] == pytest.approx(float(bound), rel=1e-3)
    assert all(y <= x + 1e-3 for x, y in zip(found["about_image"], found["about_label"], strict=True))
    with torch.no_grad():
        model.linear.weight.mul_(7), model.linear.bias.mul_(7)
    again = quantities.information(model, images, labels)
    assert again["about_image"] == found["about_image"] and again["gaussian"]["values"] == found["gaussian"]["values"]
    with torch.no_grad():
        model.layer1[2].bn2.weight.zero_()  # a block that is the identity, then one that is dead
        model.linear.weight.zero_()
    dead = quantities.information(model, images, labels)
    assert dead["about_image"][2] == pytest.approx(dead["about_image"][3]) and dead["about_image"][4] == 0
    assert dead["gaussian"]["values"][2][3] < 20 and abs(dead["gaussian"]["values"][1][4]) < 1


def test_small_images_are_averages_rounded_to_the_nearest_level():
    pixels = torch.tensor([[[[0, 1, 10, 10], [1, 1, 10, 11]]]], dtype=torch.uint8)  # means of 0.75 and 10.25
    images = data.Images(pixels, torch.tensor([0]), ("any",), (0.5,), (0.5,), "two blocks")
    assert _shrink(images, 2).images.tolist() == [[[[1, 10]]]] and _shrink(images, 1) is images


def test_weight_measures_count_every_weight(device):
    model = models.digits_net(width=4, blocks=1).to(device)
    with torch.no_grad():
        model.layer1[0].conv1.weight[:2] = 0
    found = quantities.weights(model)
    by_name = {layer["name"]: layer for layer in found["layers"]}
    assert set(by_name) == {"conv1", "layer1.0.conv1", "layer1.0.conv2", "linear"}
    conv = by_name["layer1.0.conv1"]
    assert sum(conv["histogram"]) == 4 * 4 * 9 and conv["zeros"] == 72 and conv["filter_norms"][:2] == [0, 0]
    assert len(conv["histogram"]) == len(found["edges"]) and len(conv["bn_scale"]) == 4
    assert "bn_scale" not in by_name["linear"]
    two = torch.nn.Sequential(torch.nn.Linear(2, 1)).to(device)  # reads channels of deviation 3 and 4
    images = torch.tensor([[3.0, 4.0], [-3.0, 4.0], [3.0, -4.0], [-3.0, -4.0]], device=device)
    (layer,) = quantities.weights(two, images)["layers"]
    assert layer["input_deviation"] == 3.54  # √((9 + 16)/2)


def test_geometry_explains_a_plane_completely(device):
    """Features that lie in a plane lose nothing in two components, and the same plane twice gives the same points."""
    plane = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Linear(6, 6)).to(device, torch.float64)
    found = quantities.geometry(plane, torch.randn(20, 2, dtype=torch.float64, device=device), torch.nn.Linear)
    assert found["explained"] == [1.0, 1.0]
    points = torch.tensor(found["points"])
    torch.testing.assert_close(points.square().sum((1, 2)), torch.tensor([20.0, 20.0]), rtol=1e-2, atol=0)


@pytest.mark.parametrize("turn", [0.5, 2.0])
def test_each_layer_is_turned_onto_the_one_before(turn):
    """Two numbers, stretched along an axis of their own by the second layer: scipy's rotation onto the first."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).double()
    q = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]], dtype=torch.float64)
    with torch.no_grad():
        net[0].weight.copy_(torch.diag(torch.tensor([2.0, 1.0])))
        net[1].weight.copy_(q.T @ torch.diag(q.new_tensor([3.0, 1.0])) @ q)
    x = torch.randn(30, 2, dtype=torch.float64)
    first, second = (torch.tensor(points) for points in quantities.geometry(net, x, torch.nn.Linear)["points"])
    with torch.no_grad():
        own = net(x) - net(x).mean(0)
    own = own / own.norm() * 30**0.5
    rotation, _ = scipy.linalg.orthogonal_procrustes(own.numpy(), first.numpy())
    np.testing.assert_allclose(second.numpy(), own.numpy() @ rotation, rtol=0.02, atol=0.005)


def test_an_outcome_of_nan_is_no_record(toy, place, tmp_path, monkeypatch):
    broken = dataclasses.replace(toy, perform=lambda run, place: Outcome({"loss": float("nan")}, [], {}))
    monkeypatch.setattr(registry, "EXPERIMENTS", MappingProxyType({"toy": broken}))
    with pytest.raises(ValueError, match=r"result\.loss is not finite"):
        experiments.perform(broken.runs("smoke")[0], place, tmp_path)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.slow
def test_the_committed_records_are_in_order():
    root = ROOT / "book" / "results"
    assert len(list(root.glob("*/*/*.json"))) > 0 and experiments.problems(root) == []


def test_a_damaged_record_is_an_error_and_never_not_run(toy, place, tmp_path, capsys):
    run = toy.runs("smoke")[0]
    experiments.perform(run, place, tmp_path)
    (tmp_path / run.path).write_text((tmp_path / run.path).read_text()[:-40])
    for reading in (
        lambda: experiments.replay("toy", "smoke", results=tmp_path),
        lambda: experiments.load_or_run("toy", "smoke", results=tmp_path),
        lambda: experiments.perform(run, place, tmp_path),
    ):
        with pytest.raises(ValueError, match=r"dense-seed0\.json: not a record"):
            reading()
    assert main(["status", "--results", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "dense-seed0.json" in said.err and "toy smoke: 0 of 2 recorded, 1 damaged" in said.out
    with pytest.raises(ValueError, match="no tier 'lap'"):
        experiments.replay("toy", "lap", results=tmp_path)
    empty = experiments.replay("toy", "smoke", results=tmp_path / "nothing")
    assert len(empty) == 0 and len(empty.missing) == 2


def test_only_too_few_examples_count_as_an_estimators_answer(place):
    run = next(r for r in EXPERIMENTS["known_information"].runs("smoke") if r.method == "gaussian")
    few = dataclasses.replace(run, settings={**run.settings, "sizes": [[3, 1, 100]]})
    outcome = known_information(few, place)
    assert outcome.result["refused"] == outcome.result["answers"] > 0
    for change in ({"estimator": "kernels"}, {"options": {"shrinkage": "none"}}):
        with pytest.raises(ValueError, match=r"kernels|shrinkage"):
            known_information(dataclasses.replace(run, settings={**run.settings, **change}), place)


@pytest.mark.slow
def test_a_precision_is_chosen_on_the_command_line_and_a_foreign_block_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COMPANION_WORK", str(tmp_path / "work"))
    command = ["run", "masks_dose", "--tier", "smoke", "--device", "cpu", "--quiet", "--results", str(tmp_path)]
    methods = ["random", "random+cka_sr_0.1"]
    assert main([*command, "--methods", methods[0], "--precision", "bfloat16"]) == 0
    assert main([*command, "--methods", *methods]) == 1
    seen = capsys.readouterr()
    assert "random+cka_sr_0.1-0.9-seed200: left: " in seen.out and "bfloat16" in seen.out
    assert "1 of 2 runs are recorded" in seen.err
    assert [path.name for path in tmp_path.glob("*/*/*.json")] == ["random-0.9-seed200.json"]


def test_a_record_says_how_its_run_was_computed_not_what_was_asked(toy, place, tmp_path, monkeypatch):
    def how(settings, here=place):
        tier = Tier(settings, {"a": {}})
        made = Experiment("toy", "?", lambda run, place: Outcome({"x": 1}, [], {}), {"smoke": tier})
        monkeypatch.setattr(registry, "EXPERIMENTS", MappingProxyType({"toy": made}))
        (tmp_path / made.runs("smoke")[0].path).unlink(missing_ok=True)
        return experiments.perform(made.runs("smoke")[0], here, tmp_path).provenance["how"]

    fast = {"precision": "bfloat16", "channels_last": True, "compile": True}
    assert how({"examples": 5}) == {} and how({"size": 8, **fast}) == fast  # no trainings: what the settings say
    asked = dataclasses.replace(place, how={"precision": "bfloat16"})
    with pytest.raises(ValueError, match="precision='bfloat16': toy is no training"):
        how({"examples": 5}, asked)
    training_settings = {**TINY, "epochs": 0, "channels_last": True}
    plain = {"precision": "float32", "channels_last": True, "compile": False, "workers": 0}
    assert how(training_settings) == plain and how(training_settings, asked) == {**plain, "precision": "bfloat16"}
    monkeypatch.setattr(runner, "emulates_bfloat16", lambda device: True)  # a T4: `fit` computes in float32
    monkeypatch.setattr(runner, "compiler_works", lambda device: False)
    assert how({**training_settings, **fast}) == plain


@pytest.mark.slow
def test_the_fastest_precision_is_measured_said_and_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "fastest", lambda device: "bfloat16")
    options = ["--methods", "none", "--seeds", "0", "--precision", "auto", "--results", str(tmp_path), "--quiet"]
    monkeypatch.setenv("COMPANION_WORK", str(tmp_path / "work"))
    assert main(["run", "dense_penalties", "--tier", "smoke", *options]) == 0
    assert "precision: bfloat16, the faster one on this" in capsys.readouterr().err
    record = experiments.replay("dense_penalties", "smoke", results=tmp_path, some=True).one(method="none", seed=0)
    assert record.provenance["how"]["precision"] == "bfloat16"
    assert "precision" not in record.run.settings


# ------------------------------------------------------------------------------------------- a light start, and imports
@pytest.mark.parametrize("command", ["list", "status", "verify", "index"])
def test_what_only_reads_loads_no_torch(command, tmp_path):
    """None of what takes seconds to import; `list` stays below 3 s of processor time."""
    heavy = ("torch", "torchvision", "statsmodels", "seaborn", "matplotlib", "scipy", "sklearn", "torch_pruning")
    program = (
        "import os, sys; from companion.experiments.__main__ import main\n"
        f"main([{command!r}]); used = os.times()\n"
        f"print([name for name in {heavy} if name in sys.modules], used.user + used.system < 3, file=sys.stderr)"
    )
    found = shutil.copytree(records.results_root() / "throughput", tmp_path / "throughput")
    records.enlist(tmp_path, sorted(found.rglob("*.json")))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COMPANION_RESULTS": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[] True" and done.stdout


def test_whatever_performs_runs_is_there():
    for experiment in EXPERIMENTS.values():
        assert not isinstance(experiment.perform, registry.Later) or callable(experiment.perform.imported())


@pytest.fixture
def brought(toy, place, tmp_path):
    """A record made elsewhere, in its folder of results."""
    elsewhere = tmp_path / "elsewhere"
    record = experiments.perform(toy.runs("smoke")[0], place, elsewhere)
    made = {**record.provenance, "commit": "0" * 40, "clean": True}
    path = dataclasses.replace(record, provenance=made).save(elsewhere)
    return path


def test_a_record_from_elsewhere_comes_in_byte_for_byte(brought, toy, tmp_path, capsys):
    here = tmp_path / "here"
    assert main(["import", str(brought), "--results", str(here)]) == 0
    path = here / toy.runs("smoke")[0].path
    assert path.read_bytes() == brought.read_bytes() and experiments.problems(here) == []
    assert f"{path}: added, SHA-256 {records.sha256(brought)}" in capsys.readouterr().out
    assert main(["import", str(brought), "--results", str(here)]) == 0  # again: it stays
    assert "was there" in capsys.readouterr().out
    alone = tmp_path / "alone.json"  # no folder, no hash index
    shutil.copy(brought, alone)
    assert main(["import", str(alone), "--results", str(tmp_path / "third")]) == 0
    assert experiments.recorded(toy.runs("smoke")[0], tmp_path / "third") is not None


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        (("result", "test", "loss"), 0.5, "changed since it was written"),
        (("result", "test", "correct"), 10**6, "correct of 360 examples"),
        (("run", "settings", "lr"), 0.3, "settings are not the registry's"),
        (("run", "experiment"), "nobody's", "the registry has no nobody's at tier smoke"),
        (("provenance", "commit"), None, "no commit that made it"),
        (("provenance", "clean"), False, "one with changes"),
        (("provenance", "processor"), ..., "provenance lacks processor"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else None,
)
def test_a_record_that_is_not_in_order_stays_out(brought, tmp_path, capsys, part, change, said):
    content = json.loads(brought.read_text())
    *outer, last = part
    inner = content
    for key in outer:
        inner = inner[key]
    if change is ...:
        del inner[last]
    else:
        inner[last] = change
    brought.write_text(json.dumps(content))
    assert main(["import", str(brought), "--results", str(tmp_path / "here")]) == 2
    assert said in capsys.readouterr().err and not list((tmp_path / "here").rglob("*.json"))


def test_another_record_of_the_run_and_another_block_stay_out(brought, toy, tmp_path, capsys, monkeypatch):
    here = tmp_path / "here"
    record = records.load(brought)
    other = dataclasses.replace(record, provenance={**record.provenance, "processor": "another"})
    other.save(here)
    before = (here / record.run.path).read_bytes()
    assert main(["import", str(brought), "--results", str(here)]) == 2
    assert "holds another record of this run" in capsys.readouterr().err
    assert (here / record.run.path).read_bytes() == before
    blocks = MappingProxyType({"toy": dataclasses.replace(toy, blocks=True)})
    monkeypatch.setattr(registry, "EXPERIMENTS", blocks)
    assert main(["import", str(brought), "--results", str(here)]) == 2
    assert "were made with {'processor': 'another'" in capsys.readouterr().err


def test_one_word_makes_the_records_of_a_chapter_anew(toy, place, tmp_path, capsys, monkeypatch):
    """Those that the book has: the others stay not run, and the book's stay as they are."""
    monkeypatch.setenv("COMPANION_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("COMPANION_RESULTS", str(tmp_path / "book"))
    run = toy.runs("smoke")[0]
    ours = experiments.perform(run, place, tmp_path / "book")
    before = (tmp_path / "book" / run.path).read_bytes()
    for mode, folder in (("replay", "book"), ("run", "work/results")):
        read = notebook.records_by(mode)
        found = read("toy", "smoke")
        assert [r.run for r in found] == [run] and [missing.seed for missing in found.missing] == [1]
        assert found[0].result == ours.result
        read_from = os.path.relpath(tmp_path / folder / "toy" / "smoke")
        assert capsys.readouterr().out == f"toy, smoke: 1 records in {read_from}\n"
        assert len(read("toy", "smoke")) == 1 and not capsys.readouterr().out  # said once
    assert (tmp_path / "work" / "results" / run.path).exists()
    assert (tmp_path / "book" / run.path).read_bytes() == before
    with pytest.raises(ValueError, match="mode='rerun' is unknown"):
        notebook.records_by("rerun")
