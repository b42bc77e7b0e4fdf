"""Sparsify: a module whose weights become zero while it heals, sealed with words on what came of it."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from paretune.ask.artifact import Artifact
from paretune.build.technique import Fit
from paretune.forms import torch as form
from paretune.training import sparsity
from paretune.training.healing import heal, sealed
from paretune.training.masks import Masks, during
from paretune.training.sparse_plan import Sparsifying


def sparsify(
    module: nn.Module,
    artifact: Artifact,
    fit: Fit,
    plan: Sparsifying,
    held: Masks,
    prune: Callable[[float], None],
    products: sparsity.Products,
    *notes: str,
    name: str,
) -> Artifact:
    """Train ``module`` in place, its zeros held by ``held``, and seal it with the structure of ``artifact``.

    Parameters
    ----------
    prune
        Makes ``held`` hold this share, 0 … 1, of all zeros that are asked for.
    notes
        What is told first.

    Raises
    ------
    BuildError
        See :func:`paretune.training.healing.heal`. Without epochs no training data is needed.
    """
    ramp, healed = plan.ramp(name), "not healed"
    if plan.epochs:
        each = during(held, ramp, prune)
        healed = heal(module, artifact, fit, plan, name=name, companion=held, each=each).line
    else:
        prune(1.0)
    fit.record(sparsity.table(name, held.weights, products))
    said = sparsity.told(module, artifact, held.weights, products)
    first, *others = notes
    return sealed(
        module, artifact, artifact, fit, form.edits_of(artifact), f"{name}: {first}; {healed}", *others, *said
    )  # fmt: skip
