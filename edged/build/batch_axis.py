"""Is axis 0 really the batch? Two samples at once must give what they give one by one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from edged.errors import BuildError, EngineError

Array = npt.NDArray[np.generic]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]

_LEAST_DB = (
    40.0  # other kernels for another batch size differ by 1e-6, another function by far more
)


def check_batch_axis(run: Run, pair: Mapping[str, Array]) -> None:
    """Refuses a model whose samples are not independent along axis 0.

    Args:
        run: the float model: inputs by name, ``[n, *shape]`` -> outputs by name.
        pair: two samples.

    Raises:
        BuildError: axis 0 is time or features, a batch size is built into the graph, or a sample's
            answer depends on its neighbour.
    """
    try:
        together = run(pair)
        alone = [run({name: rows[at : at + 1] for name, rows in pair.items()}) for at in (0, 1)]
    except EngineError as err:
        raise BuildError(
            f"the model cannot be run with batches of 1 and of 2: {err.message}; a batch size is "
            "built into the graph: export it with a dynamic axis 0"
        ) from err
    for name, rows in together.items():
        wanted = [np.asarray(one[name]) for one in alone]
        if rows.ndim == 0 or len(rows) != 2 or any(len(one) != 1 for one in wanted):
            raise BuildError(
                f"output {name!r} has shape {list(rows.shape)} for a batch of 2 and "
                f"{list(wanted[0].shape)} for a batch of 1: its axis 0 is not the batch; export "
                "the model with the batch first on every input and output"
            )
        if not _alike(np.concatenate(wanted), np.asarray(rows)):
            raise BuildError(
                f"output {name!r} of a sample depends on the other samples of its batch: axis 0 is "
                "not the batch, or the model normalises over it (BatchNormalization in training "
                "mode); export it for inference, with the batch first"
            )


def _alike(wanted: Array, found: Array) -> bool:
    reference, other = (np.asarray(rows, np.float64).reshape(-1) for rows in (wanted, found))
    if not (np.isfinite(reference).all() and np.isfinite(other).all()):
        return True  # told apart later, where it has a name
    error = reference - other
    return float(error @ error) <= 10 ** (-_LEAST_DB / 10) * float(reference @ reference)
