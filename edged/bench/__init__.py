"""`edged bench`: puts load on a device or a pool, and says what became of it.

Left to right: a schedule and payloads go into the generator, one thread with all connections; its
tally is summed up, and printed or drawn.
"""

from edged.bench.command import run
from edged.bench.options import BenchOptions

__all__ = ["BenchOptions", "run"]
