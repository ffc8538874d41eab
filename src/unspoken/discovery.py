"""A folder is a registry: each module without a leading underscore is one strategy, task or method.

Names are listed without importing anything; a module is imported when its class is asked for. A user's
own `./mine.py` and installed entry points are found the same way.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from unspoken.errors import ConfigError, unknown_name


@dataclass(frozen=True)
class Registry:
    """The classes of one kind.

    Attributes:
        kind: What one of them is called in messages, such as `strategy`.
        package: The folder, as a package name.
        base: Name of the base class in `package._base`.
    """

    kind: str
    package: str
    base: str

    @property
    def plural(self) -> str:
        return self.kind[:-1] + "ies" if self.kind.endswith("y") else self.kind + "s"

    @cached_property
    def _folder(self) -> Path:
        # find_spec of the package imports only its parents, and `unspoken` itself imports nothing heavy.
        spec = importlib.util.find_spec(self.package)
        assert spec is not None and spec.submodule_search_locations
        return Path(next(iter(spec.submodule_search_locations)))

    def names(self) -> list[str]:
        """All names, sorted, without importing their modules."""
        own = {path.stem for path in self._folder.glob("*.py") if not path.stem.startswith("_")}
        return sorted(own | set(self._entry_points()))

    def summary(self, name: str) -> str:
        """First line of the module's docstring, read without importing it."""
        path = self._folder / f"{name}.py"
        if not path.exists():
            return f"from {self._entry_points()[name].value}" if name in self._entry_points() else ""
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        return (doc or "").strip().split("\n")[0]

    def find(self, name: str) -> type[Any]:
        """The class called `name`, or defined in the file `name` if it ends in `.py`.

        Raises:
            UnknownNameError: With the nearest known name.
            ConfigError: If the file is missing or defines no such class.
        """
        if name.endswith(".py"):
            return self._class_of(self._import_file(Path(name)))
        if name in self._entry_points():
            loaded = self._entry_points()[name].load()
            return loaded if inspect.isclass(loaded) else self._class_of(loaded)
        if name.startswith("_") or not (self._folder / f"{name}.py").exists():
            raise unknown_name(self.kind, name, self.names(), f"Run: unspoken list {self.plural}")
        return self._class_of(importlib.import_module(f"{self.package}.{name}"))

    def _entry_points(self) -> dict[str, Any]:
        return {point.name: point for point in entry_points(group=f"unspoken.{self.plural}")}

    def _import_file(self, path: Path) -> ModuleType:
        if not path.is_file():
            raise ConfigError(f"No file {str(path)!r} to read a {self.kind} from.")
        module_name = f"unspoken_user_{path.stem}"
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses look their module up here
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # a file that ends the program is no module
            del sys.modules[module_name]
            raise ConfigError(f"{path} could not be imported: {type(error).__name__}: {error}") from error
        return module

    def _class_of(self, module: ModuleType) -> type[Any]:
        base = getattr(importlib.import_module(f"{self.package}._base"), self.base)
        found = [
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, base)
            and value.__module__ == module.__name__
            and not value.__name__.startswith("_")
        ]
        if len(found) != 1:
            names = ", ".join(c.__name__ for c in found) or "none"
            raise ConfigError(
                f"{module.__file__} must define exactly one public subclass of "
                f"{self.package}.{self.base} (found: {names})."
            )
        return found[0]


STRATEGIES = Registry("strategy", "unspoken.decoding", "Strategy")
TASKS = Registry("task", "unspoken.tasks", "Task")
METHODS = Registry("method", "unspoken.training", "Method")
