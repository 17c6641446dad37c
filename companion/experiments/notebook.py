"""A notebook in Google Colab: its machine forgets everything; Google Drive keeps it.

See page *Running experiments*.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = [
    "keep_on_drive",
]

DRIVE = Path("/content/drive/MyDrive")  # where Colab shows the reader's own Drive


def keep_on_drive(folder: str = "identity-and-flow") -> Path:
    """Keep image data, checkpoints and records in a folder of the reader's Google Drive, and return its path.

    Colab asks for permission and mounts the Drive. Then `COMPANION_DATA` is `data` in that folder and `COMPANION_WORK`,
    with checkpoints and the records of `load_or_run(..., mode="run")`, is `work`: for the notebook and for every
    command that it starts. The next session that calls this goes on from there: recorded runs are read, an interrupted
    one resumes.

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
