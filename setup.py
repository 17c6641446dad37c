"""What pyproject.toml cannot say: records and explorables of the book are packaged, so that chapters run anywhere."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class WithBook(build_py):
    """Adds what the package reads of the book; an editable install reads it where it lies."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for name in ("results", "explorables"):
                self.copy_tree(f"book/{name}", f"{self.build_lib}/companion/{name}")


setup(
    package_dir={"": "."},  # a plain path is what an editable install adds, not an import hook: type checkers follow it
    packages=find_packages(include=["companion", "companion.*"]),
    package_data={"": ["*.pyi"], "companion": ["py.typed"]},
    cmdclass={"build_py": WithBook},
)
