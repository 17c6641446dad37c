"""What pyproject.toml cannot say: records and explorables of the book are packaged, so that chapters run anywhere."""

from setuptools import find_namespace_packages, find_packages, setup

DATA = {f"companion.{name}": f"book/{name}" for name in ("results", "explorables")}

setup(
    packages=[
        *find_packages(include=["companion", "companion.*"]),
        *DATA,
        *(f"{package}.{part}" for package, folder in DATA.items() for part in find_namespace_packages(folder)),
    ],
    package_dir=DATA,
    package_data={"": ["*.json", "*.js", "*.css", "*.png", "SHA256SUMS", "py.typed"]},
)
