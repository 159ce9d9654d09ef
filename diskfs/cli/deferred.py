"""Modules of the standard library that are loaded when somebody uses them, not when somebody imports them."""

import sys
import threading
from importlib import import_module
from types import ModuleType
from typing import Any

_loading = threading.RLock()


class DeferredModule(ModuleType):
    """Stands in `sys.modules` for a module until one of its names is asked for; safe to share between threads.

    importlib's own LazyLoader loads a module at the next `import` statement that names it.
    """

    def __getattr__(self, name: str) -> Any:
        with _loading:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def defer(*names: str) -> None:
    """Put off loading these modules; those that are loaded already stay as they are."""
    for name in names:
        sys.modules.setdefault(name, DeferredModule(name))
