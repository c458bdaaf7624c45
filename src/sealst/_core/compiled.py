"""Functions as machine code: compiled by numba, once for an installation, and run without the interpreter lock.

Numba takes a while to import; so do modules of such functions, which are imported where they are called.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from numba import njit

from sealst._logging import logger


def compiled(signature: Any = None) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function, at once where its signature is given; there is a line in the log.

    Machine code is kept beside the package, or in the user's folder of caches; where neither can be written, it is made
    in every process. Arithmetic is that of the source, in its order, so that results do not depend on the processor.
    """

    def decorated(function: Callable[..., Any]) -> Any:
        began = time.perf_counter()
        try:
            made = njit(signature, nogil=True, cache=True)(function)
        except RuntimeError:
            made = njit(signature, nogil=True)(function)
        # With NUMBA_DISABLE_JIT=1 it is the function itself.
        if signature is not None and made is not function and not made.stats.cache_hits:
            name, seconds = f"{function.__module__}.{function.__name__}", time.perf_counter() - began
            logger.info("compiled %s in %.0f s, which is done once", name, seconds)
        return made

    return decorated
