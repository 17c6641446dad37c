"""A run of the command line that waits where a test wants to kill it: no sleep, no look at a folder that changes."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

SCRIPT = """
import sys, time
from companion.experiments.__main__ import main
from companion.training import loop

save = loop.save_checkpoint

def hold(path, state):
    save(path, state)
    print("saved", flush=True)
    time.sleep(3600)  # the test kills it long before

loop.save_checkpoint = hold
sys.exit(main())
"""


def kill_after_a_save(
    launch: Sequence[str], arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> None:
    """SIGKILL to `launch SCRIPT arguments` and all its children once the first checkpoint is on the disk."""
    script = folder / "held.py"
    script.write_text(SCRIPT)
    command = [*launch, str(script), *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert any("saved" in line for line in started.stdout), "it ended without a checkpoint"
        parent = psutil.Process(started.pid)
        processes = [parent, *parent.children(recursive=True)]  # children outlive it: each is killed by itself
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes)  # a lock is free when its holder is gone
