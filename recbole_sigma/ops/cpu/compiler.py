"""How the CPU kernels are compiled: one decorator for kernels, one for the functions inlined into them."""

import hashlib
import logging
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
from numba.core import caching, compiler, event

logger = logging.getLogger(__name__)

# NaN and infinity keep their meaning, so that a diverged model is noticed: these are the fast-math flags that allow it.
FAST_MATH = {"reassoc", "contract", "nsz", "arcp"}
# Reassociation would optimise the rounding trick of `exp2` away; functions with such tricks have these flags.
EXACT_ORDER = {"contract"}


class _DisjointArrays(compiler.Compiler):
    """Tells LLVM that no two array arguments overlap; without it the inner loops are guarded by overlap checks."""

    def define_pipelines(self) -> list[Any]:
        self.state.flags.noalias = True
        return super().define_pipelines()


def _digest_of_sources() -> str:
    """SHA-256 of all kernel sources: numba's cache key covers only the kernel's own file, not inlined functions."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        try:
            digest.update(path.read_bytes())
        except OSError:  # imported from an archive, whose files change only with the package
            digest.update(path.name.encode())
    return digest.hexdigest()


_SOURCES = _digest_of_sources()


class _Announcement(event.Listener):
    """Says once that kernels are compiled, which takes a while and shows nothing."""

    said = False

    def on_start(self, event: Any) -> None:
        ours = event.data["dispatcher"].py_func.__module__.startswith("recbole_sigma.")
        if ours and not self.said:
            folder = cache_folder()
            kept = f"once: they are kept in {folder}" if folder else "at each start, unless NUMBA_CACHE_DIR is set"
            logger.info("compiling the CPU kernels; this takes up to a minute, %s", kept)
            self.said = True

    def on_end(self, event: Any) -> None:
        """Nothing is said at the end."""


event.register("numba:compile", _Announcement())


class _SafeCache(caching.FunctionCache):
    """numba's disk cache, except that a disk error costs compile time instead of raising an exception."""

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return (*super()._index_key(sig, codegen), _SOURCES)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except (OSError, EOFError, pickle.UnpicklingError):
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):
            super().save_overload(sig, data)


def cache_folder() -> str | None:
    """Directory of the compiled kernels; None if no directory can be written and every process compiles for itself."""
    try:
        return str(_SafeCache(_digest_of_sources).cache_path)
    except (RuntimeError, OSError):
        return None


def kernel(function: Callable[..., None]) -> Callable[..., None]:
    """Compile `function` on its first call per argument types, without the GIL; its arrays must not overlap."""
    dispatcher: Any = numba.njit(
        nogil=True, fastmath=FAST_MATH, error_model="numpy", boundscheck=False, pipeline_class=_DisjointArrays
    )(function)
    with suppress(RuntimeError, OSError):  # no directory can be written: every process compiles for itself
        dispatcher._cache = _SafeCache(function)
    return dispatcher


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Inline `function` into the kernels that call it before compilation, with what they know of the arrays."""
    return numba.njit(inline="always")(function)


def by_dtype(single: Callable[..., Any], double: Callable[..., Any]) -> Callable[[Any], Any]:
    """Decorate a stub: inside kernels it is `single` for float32 arguments and `double` for float64 arguments."""

    def decorate(stub: Any) -> Any:
        def choose(x: Any) -> Any:
            return single if x == numba.types.float32 else double

        options: Any = {"fastmath": EXACT_ORDER, "error_model": "numpy", "forceinline": True}
        numba.extending.overload(stub, jit_options=options, strict=False)(choose)  # lambdas have no annotations
        return stub

    return decorate
