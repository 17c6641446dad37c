"""What chapters share: the one word that makes their records anew, where Google Colab keeps them, a penalty's colour.

See page *Running experiments*.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from companion._checks import one_of
from companion.experiments import archive
from companion.experiments.records import Records, results_root

__all__ = ["colour_of", "keep_on_drive", "records_by"]

DRIVE = Path("/content/drive/MyDrive")  # where Colab shows the reader's own Drive


def records_by(mode: str = "replay") -> Callable[..., Records]:
    """How a chapter reads records: `archive.replay`, or, with `"run"`, the same records made anew.

    What has no record in the book stays *not run*. What is made lies in the work folder, goes on if interrupted, and
    leaves the book's records alone; claims and hypotheses judge the book's. The folder that is read is printed, as seen
    from here, once for each experiment and tier.

    >>> recorded = records_by("replay")  # or "run": every record made anew
    >>> found = recorded("published_cka", "paper")  # doctest: +ELLIPSIS
    published_cka, paper: 7 records in ...results/published_cka/paper
    """
    one_of(mode=(mode, ("replay", "run")))
    told = set()

    def read(name: str, tier: str = "laptop", **options: Any) -> Records:
        found = archive.replay(name, tier, **options)
        folder = results_root(options.get("results"))
        if mode == "run":
            from companion.experiments.runner import Workplace, perform  # with torch

            place = Workplace(progress=True)
            folder = place.work / "results"
            made = [perform(record.run, place, folder) for record in found]
            busy = [record.run for record, new in zip(found, made, strict=True) if new is None]
            found = Records([record for record in made if record is not None], [*busy, *found.missing])
        if (name, tier) not in told:
            print(f"{name}, {tier}: {len(found)} records in {os.path.relpath(folder / name / tier)}")
            told.add((name, tier))
        return found

    return read


def keep_on_drive(folder: str = "identity-and-flow") -> Path:
    """Keep image data, checkpoints and records in a folder of the reader's Google Drive, and return its path.

    Colab asks for permission and mounts the Drive. Then `COMPANION_DATA` is `data` in that folder and `COMPANION_WORK`,
    with checkpoints and records, is `work`: the next session that calls this goes on from there.

    Raises:
        RuntimeError: not in Colab.
    """
    try:
        from google.colab import drive
    except ImportError:
        raise RuntimeError(
            "this is not Google Colab, which alone can mount your Drive: name folders of your own instead, by the "
            "variables COMPANION_DATA (images) and COMPANION_WORK (checkpoints and records)"
        ) from None
    drive.mount(str(DRIVE.parent))
    home = DRIVE / folder
    for variable, name in (("COMPANION_DATA", "data"), ("COMPANION_WORK", "work")):
        (home / name).mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str(home / name)
    return home


def colour_of(method: str) -> str:
    """A penalty's colour in every figure: CKA-SR, AugCKA-SR, FFR, a sum of penalties, or one on parameters alone.

    >>> colour_of("ffr_length") == colour_of("ffr_curvature") != colour_of("cka_sr+ffr_length")
    True
    """
    from companion import plots  # with matplotlib, which reading records does not need

    if "+" in method:
        return plots.WINE
    kinds = {"cka_sr": plots.BLUE, "aug_cka_sr": plots.GREEN, "ffr": plots.VERMILION}
    return next((colour for kind, colour in kinds.items() if method.startswith(kind)), plots.GREY)
