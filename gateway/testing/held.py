"""How much memory an object holds, with everything that only it leads to."""

import gc
import sys
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Final

_NOT_ITS_OWN: Final = (type, ModuleType, FunctionType, BuiltinFunctionType)


def held_bytes(root: object) -> int:
    """Bytes of `root` and of whatever can be reached from it, but for classes, modules and functions."""
    seen = {id(root)}
    waiting: list[object] = [root]
    total = 0
    while waiting:
        each = waiting.pop()
        total += sys.getsizeof(each)
        for inner in gc.get_referents(each):
            if isinstance(inner, MethodType) or (id(inner) not in seen and not isinstance(inner, _NOT_ITS_OWN)):
                if id(inner) not in seen:
                    waiting.append(inner)
                seen.add(id(inner))
    return total
