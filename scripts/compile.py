"""Compile what decides, and the world of the core, into a folder of their own: universes run twice as fast.

    .venv/bin/python scripts/compile.py FOLDER

The folder gets a copy of the package, in which the modules below are compiled by mypyc; put first on
PYTHONPATH, it runs in place of the sources. It is made anew only where the sources, Python or mypyc are not
those of before. Nothing compiled is part of the package: a study runs the sources that everybody can read.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib.metadata import version
from inspect import getmembers, isclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

SOURCES = Path(__file__).resolve().parents[1] / "src"
COMPILED = ("core/digest.py", "core/merge", "core/round", "core/rules", "simulation/universe")
STAMP = "COMPILED_FROM"


def modules() -> Iterator[str]:
    """The files to compile: not those that define msgspec's values, of which mypyc makes other ones."""
    for where in COMPILED:
        path = SOURCES / "konsil" / where
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            name = ".".join(file.relative_to(SOURCES).with_suffix("").parts)
            if file.name != "__init__.py" and not _defines_values(name):
                yield str(file.relative_to(SOURCES))


def _defines_values(name: str) -> bool:
    module = importlib.import_module(name)
    return any(
        issubclass(each, msgspec.Struct) and each.__module__ == name
        for _, each in getmembers(module, isclass)
    )


def stamp() -> str:
    """What a compiled copy was made from."""
    seen = hashlib.sha256()
    for file in (Path(__file__), *sorted(SOURCES.rglob("*.py"))):
        name = file.relative_to(SOURCES.parent)
        seen.update(f"{name} {len(file.read_bytes())}\n".encode() + file.read_bytes())
    return f"{seen.hexdigest()} Python {sys.version} mypyc {version('mypy')}\n"


def require_compiler() -> None:
    """End here, with a sentence, where nothing can be compiled."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    header = Path(sysconfig.get_path("include"), "Python.h")
    if shutil.which(compiler) is None:
        sys.exit(f"To compile takes a C compiler; there is no '{compiler}' here. Install one, such as gcc.")
    if not header.exists():
        sys.exit(f"To compile takes Python's headers; there is no {header}. Debian: apt install python3-dev.")


def build(folder: Path) -> None:
    """Copy the package into an empty folder, and compile."""
    from mypyc.build import mypycify  # noqa: PLC0415 - takes a moment, and only a new copy needs it
    from setuptools import setup  # noqa: PLC0415 - as above

    made_from = stamp()  # before anything is read: what changes meanwhile is compiled the next time
    files = list(modules())
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(SOURCES, folder, ignore=left_out, dirs_exist_ok=True)
    os.chdir(folder)
    config = ["--config-file", str(SOURCES.parent / "pyproject.toml"), "--ignore-missing-imports"]
    options = [*config, "--cache-dir", "build/mypy", *files]
    with redirect_stdout(StringIO()) as told:  # that generators within a call become lists, among others
        try:
            extensions = mypycify(options, opt_level="3", multi_file=True)
        except SystemExit:
            print(told.getvalue(), file=sys.stderr)
            raise
    setup(
        name="konsil-compiled",
        packages=[],
        ext_modules=extensions,
        script_args=["--quiet", "build_ext", "--inplace", f"--parallel={os.cpu_count() or 1}"],
    )
    shutil.rmtree("build")
    Path(STAMP).write_text(made_from)


def replace(folder: Path) -> None:
    """Put a new copy in the place of an old one, in two steps that a hunt under way does not notice."""
    with TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        build(new)
        os.chdir(folder.parent)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)


def main(folder: Path) -> None:
    """Compile unless that was done already; of two at once, one waits for the other."""
    made_from = folder / STAMP
    if folder.exists() and not made_from.exists():
        sys.exit(f"{folder} is there, and is no compiled copy: name another folder. Nothing was touched.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made_from.exists() and made_from.read_text() == stamp():
            return
        require_compiler()
        print(f"Compiling into {folder}: half a minute to two.", file=sys.stderr)
        replace(folder)


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve())
