"""The studies: a file for each, which registers its experiments. A new file here is found by itself."""

from __future__ import annotations

import importlib
import pkgutil

for _study in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_study.name)
