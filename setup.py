"""What pyproject.toml cannot say: the book's records are packaged too, so that chapters replay them anywhere."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["companion", "companion.*"]), "companion.results"],
    package_dir={"companion.results": "book/results"},
    package_data={"companion": ["py.typed"], "companion.results": ["**/*.json", "*.md"]},
)
