"""Bring the engines that tests run against into a cache outside the checkout, once.

    scripts/engines [NAME...]      cometbft, anvil, evmd, geth, spire; all of them without a name
    scripts/engines --where NAME   only says where its programs lie; status 1 if it is not there yet

What is built is pinned, with checksums, by the files in tools/engines/NAME: Go modules by go.sum, which go
compares with what it has fetched, an npm package by the integrity in package-lock.json. The cache is
$KONSIL_ENGINES, else konsil/engines below $XDG_CACHE_HOME or ~/.cache. Its folders carry a digest of those
files and the compiler's version, so that other pins or another compiler are built anew and nothing else is.

Status 3: something that is needed to build is missing here; all else was built. This runs by Python alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

PINS = Path(__file__).resolve().parents[1] / "tools" / "engines"
MISSING = 3
DIGEST_DIGITS = 16

GO_FLAGS = "-mod=readonly -buildvcs=false"
"""Whatever the environment says: nothing but what go.sum names is built."""

UNCHECKED = ("GONOSUMDB", "GONOSUMCHECK", "GOINSECURE", "GOPRIVATE", "GOFLAGS")
"""By these an environment could keep go from checking what it fetches."""


@dataclass(frozen=True)
class Engine:
    """What to build. ``module``: the line in go.mod, or the npm package, whose version is told."""

    programs: tuple[str, ...]
    module: str
    cold: str
    needs: tuple[str, ...] = ("go",)
    ldflags: str = "-s -w"


ENGINES = {
    "cometbft": Engine(("cometbft",), "github.com/cometbft/cometbft", "a minute"),
    "anvil": Engine(("anvil",), "@foundry-rs/anvil", "seconds", needs=("node", "npm")),
    "evmd": Engine(("evmd",), "github.com/cosmos/evm", "four minutes"),
    "geth": Engine(
        ("geth",),
        "github.com/ethereum/go-ethereum",
        "two minutes",
        ldflags="-s -w -checklinkname=0",  # one of its libraries reaches into Go's runtime
    ),
    "spire": Engine(
        ("spire-server", "spire-agent"),
        "github.com/spiffe/spire",
        "five minutes and 3.3 GB of memory",
        needs=("go", "gcc"),  # the server's database is SQLite, in C
    ),
}

FROM = {
    "go": "Go (https://go.dev/dl, 1.24 or newer; it fetches the version that is asked for)",
    "gcc": "a C compiler (Debian: apt install gcc libc6-dev)",
    "node": "Node.js 20 or newer",
    "npm": "npm",
}


class Unavailable(Exception):
    """Something that is needed to build is missing here."""


class Failed(Exception):
    """A build went wrong."""


def cache() -> Path:
    """The folder with what was built."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("KONSIL_ENGINES") or Path(home, "konsil", "engines")).absolute()


def pins_digest(name: str) -> str:
    """The digest of what an engine is built from: the files that pin it, and how it is built."""
    engine = ENGINES[name]
    seen = hashlib.sha256(f"{engine.programs} {engine.ldflags} {GO_FLAGS}\n".encode())
    for file in sorted(path for path in (PINS / name).rglob("*") if path.is_file()):
        data = file.read_bytes()
        seen.update(f"{file.relative_to(PINS)} {len(data)}\n".encode() + data)
    return seen.hexdigest()[:DIGEST_DIGITS]


def version(name: str) -> str:
    """The engine's version, as it is pinned."""
    pin = PINS / name / ("package.json" if name == "anvil" else "go.mod")
    module = re.escape(ENGINES[name].module)
    found = re.search(rf'\b{module}\b"?:? "?v?([0-9][^\s"]*)', pin.read_text())
    if found is None and (found := re.search(rf'"{module}": "([^"]*)"', pin.read_text())) is None:
        raise Failed(f"{pin} does not name {ENGINES[name].module}.")
    return found[1]


def environment() -> dict[str, str]:
    """That of builds: whatever would switch a check of what is fetched off is left out."""
    kept = {key: value for key, value in os.environ.items() if key not in UNCHECKED}
    if kept.get("GOSUMDB") == "off":
        del kept["GOSUMDB"]
    return kept | {"GOFLAGS": GO_FLAGS, "GOWORK": "off"}


def said(command: list[str], where: Path) -> str:
    """What a command says.

    Raises:
        Failed: it failed; with the end of what it said.
    """
    done = subprocess.run(  # noqa: S603 - the commands of this file
        command, cwd=where, env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"`{' '.join(command)}` in {where} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout.strip()


def require(name: str) -> None:
    """See that all is there that an engine is built with.

    Raises:
        Unavailable: says what is not.
    """
    lacking = [tool for tool in ENGINES[name].needs if shutil.which(tool) is None]
    if lacking:
        raise Unavailable(
            f"{name} {version(name)} is skipped. To build it takes what is not here: "
            f"{'; '.join(FROM[tool] for tool in lacking)}. Install that, and run: scripts/engines {name}"
        )


def compiler(name: str) -> str:
    """What it is built with, as a word for a folder's name."""
    if name == "anvil":
        return f"npm-{platform.system()}-{platform.machine()}".lower()
    words = said(["go", "version"], PINS / name).split()  # "go version go1.26.8 linux/amd64"
    return "-".join(words[2:4]).replace("/", "-")


def built(name: str) -> Path | None:
    """The folder of an engine's programs, if it is in the cache: also on a machine without compilers."""
    here = f"{name}-{pins_digest(name)}-"
    with_compiler = here + compiler(name) if not _lacks(name) else "*"
    for folder in sorted(cache().glob(f"{here}*")):
        complete = all((folder / program).is_file() for program in ENGINES[name].programs)
        if complete and with_compiler in {"*", folder.name}:
            return folder
    return None


def _lacks(name: str) -> bool:
    return any(shutil.which(tool) is None for tool in ENGINES[name].needs)


def build(name: str, into: Path, scratch: Path) -> None:
    """Build an engine's programs into a folder."""
    pins = PINS / name
    if name == "anvil":
        for file in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(pins / file, scratch)
        # No package's scripts are run: the program lies in the package for this platform.
        said(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], scratch)
        found = list(scratch.glob("node_modules/@foundry-rs/anvil-*/bin/anvil"))
        if len(found) != 1:
            raise Failed(f"@foundry-rs/anvil has no program for {platform.system()} {platform.machine()}.")
        shutil.move(found[0], into / "anvil")
    else:
        flags = ["-trimpath", f"-ldflags={ENGINES[name].ldflags}", "-o", f"{into}{os.sep}"]
        said(["go", "build", *flags, "tool"], pins)
    for program in ENGINES[name].programs:
        said([str(into / program), "--help"], into)  # it runs on this machine


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Of two at once one waits for the other, and then finds all done."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in cache().glob(f".{name}-*"):
            shutil.rmtree(left, ignore_errors=True)  # by a run that was killed: nobody else builds it now
        yield


def bring(name: str) -> tuple[Path, bool]:
    """The folder of an engine's programs, built if need be, and whether it had to be.

    Raises:
        Unavailable, Failed: it is not there and cannot be built.
    """
    folder = built(name)
    if folder is not None:
        return folder, False
    require(name)
    with alone(name):
        folder = built(name)
        if folder is not None:
            return folder, False
        print(f"{name} {version(name)}: is built, once: {ENGINES[name].cold}", file=sys.stderr, flush=True)
        folder = cache() / f"{name}-{pins_digest(name)}-{compiler(name)}"
        with TemporaryDirectory(prefix=f".{name}-", dir=cache()) as hidden:
            new, scratch = Path(hidden, "new"), Path(hidden, "scratch")
            new.mkdir()
            scratch.mkdir()
            build(name, new, scratch)
            if folder.exists():  # by hand, and incomplete
                shutil.rmtree(folder)
            new.rename(folder)
    return folder, True


def main(words: list[str]) -> int:
    """Do what the command line says; the exit status."""
    where = words[:1] == ["--where"]
    names = words[1:] if where else words or list(ENGINES)
    unknown = [name for name in names if name not in ENGINES]
    if unknown or not names:
        sys.exit(f"{__doc__}\nUnknown: {' '.join(unknown) or 'no name'}")
    status = 0
    for name in names:
        if where:
            folder = built(name)
            if folder is None:
                print(f"{name} {version(name)} is not here; run: scripts/engines {name}", file=sys.stderr)
                status = 1
            else:
                print(*(folder / program for program in ENGINES[name].programs), sep="\n")
            continue
        since_s = time.monotonic()
        try:
            folder, new = bring(name)
        except Unavailable as missing:
            print(missing, file=sys.stderr)
            status = status or MISSING
        except Failed as problem:
            print(problem, file=sys.stderr)
            status = 1
        else:
            took = f"{time.monotonic() - since_s:.1f} s" + ("" if new else ", was there")
            print(f"{name} {version(name)} {folder} ({took})", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
