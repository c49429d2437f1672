"""Runs universes with a planted bug, in a process of its own: an exact text of one module is another one.

Started by the tests: module, old text, new text (both as JSON), first seed, how many. Prints after how many
universes an invariant broke, and what it said; 0 and nothing if none did.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import sys


class Planter(importlib.abc.MetaPathFinder):
    """Finds one module as it always is found, and loads it with a bug."""

    def __init__(self, module, old, new):
        self.module, self.old, self.new = module, old, new
        self.planted = False

    def find_spec(self, name, path, target=None):
        if name != self.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        spec.loader = Loader(spec.loader.name, spec.loader.path, self)
        return spec


class Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name, path, planter):
        super().__init__(name, path)
        self.planter = planter

    def get_code(self, _fullname):  # never from a cache
        source = self.get_data(self.path).decode()
        found = source.count(self.planter.old)
        if found != 1:
            sys.exit(f"the text to be replaced is in {self.path} {found} times, not once")
        self.planter.planted = True
        return compile(source.replace(self.planter.old, self.planter.new), self.path, "exec")


def main():
    module, old, new, first, count = json.loads(sys.argv[1])
    planter = Planter(module, old, new)
    sys.meta_path.insert(0, planter)
    from konsil.simulation.nodes import run_universe  # noqa: PLC0415 - only once the bug is planted

    if not planter.planted:
        sys.exit(f"{module} is not imported by a world")
    for number in range(count):
        outcome = run_universe(first + number)
        if outcome.broken:
            sys.stdout.write(json.dumps([number + 1, outcome.broken[0]]))
            return
    sys.stdout.write(json.dumps([0, ""]))


main()
