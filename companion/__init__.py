"""The package that the book *Identity & Flow: learning sparse neural networks from their features* teaches with.

The names that people type first can be imported from here; `__init__.pyi` lists them, for editors and type
checkers too. Each module is loaded when one of its names is asked for.

>>> from companion import cka
>>> cka.__module__.startswith("companion.similarity")
True
"""

import lazy_loader

__version__ = "0.2.0"  # the only place: packaging reads it from here
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
