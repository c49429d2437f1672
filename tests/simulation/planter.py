"""An import hook that plants a bug: an exact text of one module's source is another one."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader


class Planter(MetaPathFinder):
    """Finds one module as it always is found, and loads it with a bug. ``planted``: whether it has."""

    def __init__(self, module: str, old: str, new: str) -> None:
        self.module, self.old, self.new = module, old, new
        self.planted = False

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(fullname, spec.origin, self)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, planter: Planter) -> None:
        super().__init__(name, path)
        self.planter = planter

    def get_code(self, _fullname):  # never from a cache
        source = self.get_data(self.path).decode()
        found = source.count(self.planter.old)
        if found != 1:
            sys.exit(f"the text to be replaced is in {self.path} {found} times, not once")
        self.planter.planted = True
        return compile(source.replace(self.planter.old, self.planter.new), self.path, "exec")
