"""Records: what a finished run of an experiment measured, as one small JSON file.

A record holds the settings and the seed that decide the run, its result, its curve over epochs, the measures that
figures draw, and its provenance. `problems` checks it against itself: a number changed by hand no longer fits the
others.

The folder is `results/EXPERIMENT/TIER/METHOD[-SPARSITY]-seedN.json`, under `book/` in the repository and inside the
package elsewhere.

See page *Running experiments*.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from filelock import FileLock

import companion
from companion._files import sweep, write_aside

if TYPE_CHECKING:
    import torch

    from companion.experiments.statistics import Mean

__all__ = [
    "INDEX",
    "LIMIT",
    "DamagedRecordError",
    "Record",
    "Records",
    "Run",
    "block",
    "enlist",
    "index",
    "load",
    "mend",
    "of_sessions",
    "packed",
    "problems",
    "provenance",
    "results_root",
    "sha256",
    "unpacked",
]

SCHEMA = 1
LIMIT = 200_000  # bytes a record may take
PROVENANCE = {
    **{"started": str, "wall_seconds": int | float, "processor": str, "accelerator": str | None, "threads": int},
    **dict.fromkeys(("python", "torch", "torchvision", "companion"), str),
    **{"commit": str | None, "clean": bool | None},
}


@dataclass(frozen=True)
class Run:
    """One cell of an experiment: everything that decides its result.

    Attributes:
        sparsity: share of the weights that are 0, or None where the experiment has no such axis.
        settings: what else decides the run; JSON values only.

    >>> Run("random_masks", "laptop", "random", seed=0, sparsity=0.95).path.as_posix()
    'random_masks/laptop/random-0.95-seed0.json'
    """

    experiment: str
    tier: str
    method: str
    seed: int
    sparsity: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`METHOD[-SPARSITY]-seedN`, the record's file name."""
        sparsity = "" if self.sparsity is None else f"-{self.sparsity:g}"
        return f"{self.method}{sparsity}-seed{self.seed}"

    @property
    def path(self) -> Path:
        """Where the record lies, relative to the folder of results."""
        return Path(self.experiment, self.tier, f"{self.name}.json")

    def __str__(self) -> str:
        return f"{self.experiment}/{self.tier}/{self.name}"


class DamagedRecordError(ValueError):
    """A file that should hold a record holds none.

    >>> Record.from_json("{}")
    Traceback (most recent call last):
    companion.experiments.records.DamagedRecordError: not a record: KeyError('schema')
    """


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        result: the numbers the run was made for. Each evaluation is `{"correct", "examples", "loss"}`.
        curve: one entry an epoch.
        measures: what the figures draw: matrices `{"layers", "values"}`, histograms, norms.
        provenance: see the function of that name.

    >>> run, scores = Run("example", "smoke", "none", seed=0), {"test": {"correct": 9, "examples": 10}}
    >>> record = Record(run, scores, curve=[], measures={}, provenance={})
    >>> record.accuracy(), Record.from_json(record.to_json()) == record
    (0.9, True)
    """

    run: Run
    result: Mapping[str, Any]
    curve: Sequence[Mapping[str, Any]]
    measures: Mapping[str, Any]
    provenance: Mapping[str, Any]

    # -- reading
    def accuracy(self, split: str = "test") -> float:
        """Share of the examples of `split` that the net of the last epoch classifies correctly."""
        part = self.result[split]
        return part["correct"] / part["examples"]

    def right(self, split: str = "test") -> np.ndarray:
        """Which examples of `split`, in the order of the data set, that net classifies correctly.

        Raises:
            ValueError: a record that does not keep it; those made before the third round do not.
        """
        part = self.result[split]
        if "right" not in part:
            raise ValueError(f"record {self.run} does not say which examples of {split} are right, only how many")
        return unpacked(part["right"], part["examples"])

    def frame(self, measure: str) -> pd.DataFrame:
        """A matrix among the measures, as a table layers × layers."""
        if measure not in self.measures:
            raise ValueError(f"record {self.run} has no measure {measure!r}; it has {sorted(self.measures)}")
        matrix = self.measures[measure]
        return pd.DataFrame(matrix["values"], index=matrix["layers"], columns=matrix.get("columns", matrix["layers"]))

    # -- files
    def to_json(self) -> str:
        """The record as text; NaN and infinity are refused."""
        content = {"schema": SCHEMA, **dataclasses.asdict(self)}
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The record in `text`.

        Raises:
            DamagedRecordError: no JSON, another schema, missing or unknown parts, or parts of another type.
        """
        try:
            content = json.loads(text)
            schema = content.pop("schema")
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            raise DamagedRecordError(f"not a record: {error!r}") from error
        if schema != SCHEMA:
            raise DamagedRecordError(f"record has schema {schema}; this version of companion reads schema {SCHEMA}")
        _typed("record", content, PARTS)
        _typed("record's run", content["run"], RUN)
        _typed("record's curve", dict(enumerate(content["curve"])), dict.fromkeys(range(len(content["curve"])), dict))
        return cls(**{**content, "run": Run(**content["run"])})

    def save(self, root: str | Path | None = None) -> Path:
        """Write the record into the folder of results, all or nothing.

        Raises:
            ValueError: the record contradicts itself, or is larger than 200 kB.
            OSError: the folder cannot be written to.
        """
        if found := problems(self):
            raise ValueError(f"record {self.run}: " + "; ".join(found))
        text = self.to_json()
        if (size := len(text.encode())) > LIMIT:
            raise ValueError(f"record {self.run}: {size} bytes, at most {LIMIT} are allowed: round the measures")
        folder = results_root(root)
        path = folder / self.run.path
        write_aside(path, text)
        enlist(folder, [path], anew=True)
        return path


PARTS = {"run": dict, "result": dict, "curve": list, "measures": dict, "provenance": dict}
RUN = {"experiment": str, "tier": str, "method": str, "seed": int, "sparsity": int | float | None, "settings": dict}


def _typed(what: str, found: Mapping[Any, Any], wanted: Mapping[Any, Any]) -> None:
    """Refuse parts that are missing, unknown, or of another type."""
    if set(found) != set(wanted):
        raise DamagedRecordError(f"a {what} has the parts {sorted(wanted)}; this one has {sorted(found)}")
    wrong = [f"{name} is a {type(part).__name__}" for name, part in found.items() if not isinstance(part, wanted[name])]
    if wrong:
        raise DamagedRecordError(f"a {what} of other types: {', '.join(wrong)}")


def results_root(root: str | Path | None = None) -> Path:
    """The argument, else `COMPANION_RESULTS`, else the repository's `book/results`, else the package's own copy.

    >>> results_root("somewhere/results").as_posix()
    'somewhere/results'
    """
    if root is not None:
        return Path(root)
    if given := os.environ.get("COMPANION_RESULTS"):
        return Path(given)
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent / "book" / "results"
    return checkout if checkout.is_dir() else package / "results"


# ---------------------------------------------------------------------------------------------------------------- index
INDEX = "SHA256SUMS"  # as `sha256sum --check` reads it


def index(root: str | Path | None = None) -> dict[str, str]:
    """The hash index of a folder of results: record's path in it → SHA-256; empty where there is none.

    >>> known = index()
    >>> len(next(iter(known.values())))  # hexadecimal digits of SHA-256
    64
    """
    return {name: digest for digest, name in _lines(results_root(root))}


def _lines(root: Path) -> list[tuple[str, str]]:
    """The lines of the index: digest and name.

    Raises:
        ValueError: a damaged index.
    """
    path = root / INDEX
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): put back the committed one, or remove it, and "
            "`python -m companion.experiments index` enters the records anew"
        ) from error
    return [(digest, name) for digest, _, name in (line.partition("  ") for line in lines)]


def listed_twice(root: Path) -> list[str]:
    """Names that stand more than once in the hash index."""
    return [name for name, count in Counter(name for _, name in _lines(root)).items() if count > 1]


def enlist(root: str | Path, paths: Iterable[Path], anew: bool = False) -> list[Path]:
    """Enter records into the hash index; returns those that are new there.

    One that is listed keeps its line, unless `anew`: a record that was changed by hand cannot be made good here.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "record.json")
    ...     _ = path.write_text("{}")
    ...     print([new.name for new in enlist(folder, [path])], enlist(folder, [path]))
    ['record.json'] []
    """
    root = Path(root)
    digests = {path.relative_to(root).as_posix(): path for path in paths}
    with FileLock(root / f".{INDEX}.lock"):  # what one runner adds, another must not overwrite
        known = index(root)
        new = {name: path for name, path in digests.items() if anew or name not in known}
        if new:
            both = known | {name: sha256(path) for name, path in new.items()}
            text = "".join(f"{digest}  {name}\n" for name, digest in sorted(both.items()))
            write_aside(root / INDEX, text)
        sweep(root / INDEX)
    return list(new.values())


def mend(root: Path, run: Run) -> None:
    """Finish what a runner that was killed, or a full disk, left half done after the record was written."""
    if run.path.as_posix() not in index(root):
        enlist(root, [root / run.path])
    sweep(root / run.path)


def load(path: Path) -> Record:
    """Read one record.

    Raises:
        DamagedRecordError: the file is no record; the message names it.

    >>> load(next(results_root().glob("published_cka/paper/*.json"))).run.experiment
    'published_cka'
    """
    try:
        return Record.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, IsADirectoryError) as error:  # no UTF-8, or a folder of that name
        raise DamagedRecordError(f"{path}: {error}") from error


# ---------------------------------------------------------------------------------------------------------- consistency
def problems(record: Record) -> list[str]:
    """What is wrong with a record in itself; empty when nothing is.

    >>> run, scores = Run("example", "smoke", "none", seed=0), {"test": {"correct": 11, "examples": 10}}
    >>> problems(Record(run, scores, [], {}, provenance("cpu", "2026-01-01T00:00:00+00:00", wall_seconds=1.0)))
    ['result.test: 11 correct of 10 examples']
    """
    found = [
        f"provenance.{key} is {session[key]!r}" if key in session else f"provenance lacks {key}"
        for session in (record.provenance, *record.provenance.get("resumed", []))
        for key, kind in PROVENANCE.items()
        if not isinstance(session.get(key, ...), kind)
    ]
    numbers = {"result": record.result, "curve": record.curve, "measures": record.measures}
    found += [f"{path} is not finite" for path, x in _parts(numbers) if isinstance(x, float) and not math.isfinite(x)]
    for name, part in _parts(record.result, "result"):
        if not (isinstance(part, Mapping) and "correct" in part):
            continue
        correct, examples = part.get("correct"), part.get("examples")
        if not (isinstance(correct, int) and isinstance(examples, int) and 0 <= correct <= examples and examples > 0):
            found.append(f"{name}: {correct} correct of {examples} examples")
            continue
        if "right" in part:
            try:
                right = int(unpacked(part["right"], examples).sum())
            except ValueError as error:
                found.append(f"{name}.right: {error}")
                continue
            if right != correct:
                found.append(f"{name}: {correct} correct, and {right} examples marked right")
        # The curve's last epoch is the net that the result evaluates; curves keep six digits.
        last = record.curve[-1].get(f"{name.removeprefix('result.')}_accuracy") if record.curve else None
        share = correct / examples
        if last is not None and min(abs(last - share), abs(last - float(f"{share:.6g}"))) > 1e-9:
            found.append(f"{name} has accuracy {share}, the last epoch of the curve {last}")
        loss = record.curve[-1].get(f"{name.removeprefix('result.')}_loss") if record.curve else None
        if loss is not None and not math.isclose(part.get("loss", math.nan), loss, rel_tol=1e-5):
            found.append(f"{name} has loss {part.get('loss')}, the last epoch of the curve {loss}")
    for name, part in record.result.items():
        key = f"{name.removeprefix('best_')}_accuracy"
        if name.startswith("best_") and record.curve and all(key in entry for entry in record.curve):
            best = max(record.curve, key=itemgetter(key))
            if part != {"epoch": best.get("epoch"), "accuracy": best[key]}:
                found.append(f"result.{name} is {part}, that of the curve epoch {best.get('epoch')} with {best[key]}")
    for key in sorted({key for entry in record.curve for key in entry}):
        if len({isinstance(entry[key], int | float) for entry in record.curve if key in entry}) > 1:
            found.append(f"curve.{key} is a number in some epochs only")
    epochs = [entry.get("epoch") for entry in record.curve]
    if epochs != list(range(1, len(epochs) + 1)):
        found.append(f"curve has epochs {epochs}; expected 1, 2, …")
    if record.curve and "epochs" in record.run.settings and len(epochs) != record.run.settings["epochs"]:
        found.append(f"curve has {len(epochs)} epochs, settings say {record.run.settings['epochs']}")
    for name, measure in record.measures.items():
        if isinstance(measure, Mapping) and {"layers", "values"} <= set(measure):
            rows, columns = len(measure["layers"]), len(measure.get("columns", measure["layers"]))
            if [len(row) for row in measure["values"]] != [columns] * rows:
                found.append(f"measures.{name} is not {rows} × {columns}")
    seconds = record.provenance.get("wall_seconds", 0)
    if isinstance(seconds, int | float) and not 0 < seconds < math.inf:
        found.append(f"provenance.wall_seconds is {seconds!r}")
    return found


def _parts(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A value and everything in it, and where it stands."""
    yield path, value
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _parts(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _parts(item, f"{path}[{index}]")


def packed(right: np.ndarray) -> str:
    """One bit an example, in base64: 10,000 of them take 1.7 kB.

    >>> packed(np.array([True, False, True])), unpacked("oA==", 3).tolist()
    ('oA==', [True, False, True])
    """
    return base64.b64encode(np.packbits(right.astype(bool)).tobytes()).decode()


def unpacked(text: str, examples: int) -> np.ndarray:
    """The bits of `packed`, as an array of so many booleans.

    Raises:
        ValueError: text that holds another number of bits.

    >>> unpacked("oA==", examples=3)
    array([ True, False,  True])
    """
    data = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
    if len(data) != -(-examples // 8):
        raise ValueError(f"{8 * len(data)} bits for {examples} examples")
    return np.unpackbits(data, count=examples).astype(bool)


# ----------------------------------------------------------------------------------------------------------- provenance
def provenance(
    device: torch.device | str, started: str, wall_seconds: float, how: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Where, how and with what a run was made: when, how long (seconds), models of processor and accelerator, never a
    host; precision and the like (`how`); versions; commit, and whether the package was `clean`.

    >>> made = provenance("cpu", started="2026-01-01T00:00:00+00:00", wall_seconds=1.0, how={"precision": "float32"})
    >>> sorted(made) == sorted([*PROVENANCE, "how"])
    True
    """
    import torch  # here, because records are read without it

    device = torch.device(device)
    commit, clean = _commit()
    return {
        "started": started,
        "wall_seconds": float(f"{wall_seconds:.4g}"),
        "processor": _processor(),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "companion": companion.__version__,  # of the code that runs, whatever is installed beside it
        "commit": commit,
        "clean": clean,
        "how": dict(how or {}),
    }


def of_sessions(sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The provenance of a run: that of the session in which it began, the seconds of all, and under `resumed` the
    provenances of the sessions in which it went on, if any.

    >>> once = {"commit": "a", "wall_seconds": 1.23456}
    >>> of_sessions([once]), of_sessions([once, {"commit": "b", "wall_seconds": 2.0}])["resumed"]
    ({'commit': 'a', 'wall_seconds': 1.235}, [{'commit': 'b', 'wall_seconds': 2.0}])
    """
    seconds = sum(session["wall_seconds"] for session in sessions)
    later = [{**session, "wall_seconds": float(f"{session['wall_seconds']:.4g}")} for session in sessions[1:]]
    return {**sessions[0], "wall_seconds": float(f"{seconds:.4g}")} | ({"resumed": later} if later else {})


def block(made: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must share for their difference not to be one between machines: processor or accelerator, and
    precision; from a provenance. Older records do not say their precision.

    >>> block({"processor": "any", "accelerator": None, "how": {"precision": "float32", "compile": False}})
    {'processor': 'any', 'precision': 'float32'}
    """
    machine = {"accelerator": made["accelerator"]} if made["accelerator"] else {"processor": made["processor"]}
    return machine | {"precision": made.get("how", {}).get("precision")}


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The name that the processor gives itself, and where it says so its family and model: virtual machines give
    several models one name, and those do not compute alike to the last bit."""
    try:
        first = cpuinfo.read_text().split("\n\n", 1)[0]
        said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
        numbers = {"cpu family": "family", "model": "model"}
        return ", ".join([said["model name"], *(f"{word} {said[key]}" for key, word in numbers.items() if key in said)])
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def _commit() -> tuple[str | None, bool | None]:
    """The checkout's commit and whether the package's files are as committed. Of an installed package, and of one in
    another project's repository: the commit that pip installed, if any, and None."""
    package = Path(__file__).resolve().parent.parent
    try:

        def git(*args: str) -> str:
            return subprocess.run(
                ["git", "-C", str(package), *args], capture_output=True, text=True, check=True
            ).stdout.strip()

        project = package.parent / "pyproject.toml"
        own = Path(git("rev-parse", "--show-toplevel")).resolve() == package.parent
        if not own or not project.exists() or 'name = "identity-and-flow"' not in project.read_text():
            return _installed_from(), None
        return git("rev-parse", "HEAD"), git("status", "--porcelain", "--", ".") == ""
    except (OSError, subprocess.CalledProcessError):
        return _installed_from(), None


def _installed_from() -> str | None:
    """The commit from which pip installed the package, where it did so by git (PEP 610)."""
    try:
        installed = metadata.distribution("identity-and-flow")
    except metadata.PackageNotFoundError:  # unpacked from an archive
        return None
    if Path(str(installed.locate_file("companion"))).resolve() != Path(__file__).resolve().parent.parent:
        return None  # another copy is imported than pip's
    commit: str | None = json.loads(installed.read_text("direct_url.json") or "{}").get("vcs_info", {}).get("commit_id")
    return commit


def sha256(path: str | Path) -> str:
    """Hex digest of a file.

    >>> sha256(os.devnull)[:8]
    'e3b0c442'
    """
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# -------------------------------------------------------------------------------------------------- records of a study
class Records(Sequence[Record]):
    """The records of an experiment at one tier, and the runs that have none.

    >>> runs = [Run("example", "smoke", method, seed) for method in ("none", "l1") for seed in (0, 1)]
    >>> scores = [{"test": {"correct": correct, "examples": 10}} for correct in (6, 7, 7, 9)]
    >>> records = Records(Record(run, score, [], {}, {}) for run, score in zip(runs, scores, strict=True))
    >>> str(records.where(method="none").mean()), str(records.difference("l1", "none"))
    ('0.65 ± 0.64 (n = 2)', '0.15 ± 0.64 (n = 2)')
    """

    def __init__(self, records: Iterable[Record], missing: Iterable[Run] = ()) -> None:
        self._records = list(records)
        self.missing = list(missing)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        return self._records[index]

    def __repr__(self) -> str:
        return f"Records({len(self)} recorded, {len(self.missing)} not run)"

    def where(self, **criteria: Any) -> Records:
        """Those whose run has the given method, sparsity, seed or setting; the missing runs are chosen alike."""

        def fits(run: Run) -> bool:
            return all(
                getattr(run, key) == value if hasattr(run, key) else run.settings.get(key) == value
                for key, value in criteria.items()
            )

        return Records((r for r in self if fits(r.run)), (r for r in self.missing if fits(r)))

    def one(self, **criteria: Any) -> Record:
        """The only record that fits.

        Raises:
            ValueError: none or several do; says which runs are there and which did not run.
        """
        if len(found := self.where(**criteria)) != 1:
            there, not_run = [str(r.run) for r in self], [str(r) for r in found.missing]
            raise ValueError(f"{len(found)} records fit {criteria}; recorded: {there}; not run: {not_run}")
        return found[0]

    def mean(self, value: Callable[[Record], float] = Record.accuracy) -> Mean:
        """Mean over the records, that is over seeds when the rest is fixed."""
        from companion.experiments.statistics import mean  # here: statsmodels loads for long

        return mean(value(r) for r in self)

    def by_seed(self, value: Callable[[Record], float] = Record.accuracy) -> dict[int, float]:
        """The value of each seed's record.

        Raises:
            ValueError: two records of one seed: methods or cells are mixed.
        """
        if twice := {seed for seed, count in Counter(r.run.seed for r in self).items() if count > 1}:
            mixed = sorted({str(dataclasses.replace(r.run, seed=0)).removesuffix("-seed0") for r in self})
            raise ValueError(f"seeds {sorted(twice)} have several records, of {mixed}; choose one by `where`")
        return {r.run.seed: value(r) for r in self}

    def differences(self, other: Records, value: Callable[[Record], float] = Record.accuracy) -> dict[int, float]:
        """The value here less that of `other`, by seed, for every seed that both have; 0 where they are the same but
        for rounding, of which alone a test would make an effect without spread."""
        here, there = self.by_seed(value), other.by_seed(value)
        found = {seed: here[seed] - there[seed] for seed in sorted(here.keys() & there.keys())}
        return {seed: 0.0 if abs(less) <= 1e-12 * abs(here[seed]) else less for seed, less in found.items()}

    def curves(self, key: str) -> pd.DataFrame:
        """A number of the curves, one row an epoch, one column a record: `records.curves("loss").plot()` draws it.

        Raises:
            ValueError: a record whose curve lacks it.

        >>> run, curve = Run("example", "smoke", "none", 0), [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.5}]
        >>> Records([Record(run, {}, curve, {}, {})]).curves("loss")["none-seed0"].tolist()
        [2.0, 1.5]
        """
        for record in self:
            if lacking := [entry.get("epoch") for entry in record.curve if key not in entry]:
                have = sorted(record.curve[-1])
                raise ValueError(f"record {record.run} has no {key!r} in epochs {lacking}; it has {have}")
        of = {r.run.name: pd.Series({e["epoch"]: e[key] for e in r.curve}, dtype=float) for r in self}
        return pd.DataFrame(of).rename_axis(index="epoch")

    def difference(
        self, method: str, baseline: str, value: Callable[[Record], float] = Record.accuracy, **cell: Any
    ) -> Mean | None:
        """Mean difference of two methods in the same cell, such as `sparsity=0.9`, over the seeds that both have; None
        where there is none."""
        from companion.experiments.statistics import pooled

        here, there = (self.where(method=name, **cell) for name in (method, baseline))
        return pooled([here.differences(there, value).values()])

    def table(self, value: Callable[[Record], float] = Record.accuracy) -> pd.DataFrame:
        """One row for each method and sparsity: mean, interval, number of seeds; "not run" where there is no record.
        One seed has no interval, and says so."""
        cells = dict.fromkeys((run.method, run.sparsity) for run in (*(r.run for r in self), *self.missing))
        rows = []
        for method, sparsity in cells:
            chosen = self.where(method=method, sparsity=sparsity)
            row: dict[str, Any] = {"method": method, "sparsity": sparsity}
            row |= {"seeds": len(chosen), "not run": len(chosen.missing)}
            if len(chosen):
                average = chosen.mean(value)
                low, high = (average.low, average.high) if average.df else ("one seed", "one seed")
                row |= {"mean": average.value, "low": low, "high": high}
            rows.append(row)
        return pd.DataFrame(rows)
