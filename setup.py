"""What pyproject.toml cannot say: the book's records are packaged too, so that chapters replay them anywhere."""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class WithRecords(build_py):
    """Adds the records; an editable install reads them where they lie."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_tree("book/results", f"{self.build_lib}/companion/results")


setup(
    packages=find_packages(include=["companion", "companion.*"]),
    package_data={"companion": ["*.pyi", "py.typed"]},
    cmdclass={"build_py": WithRecords},
)
