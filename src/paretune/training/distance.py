"""Distance: how far a module's answers lie from the original's, on some training examples."""

from __future__ import annotations

import math

import numpy as np
import torch

from paretune.ask.artifact import Artifact
from paretune.ask.data import Split
from paretune.build.technique import Fit
from paretune.forms import torch as form
from paretune.training.device import home, repeatable
from paretune.training.distillation import Teacher, distilling
from paretune.training.healing import means_classes
from paretune.training.learner import Learner
from paretune.training.lesson import Lessons
from paretune.training.plan import Healing

AT_ONCE = 128


class Distance:
    """For classes the mean Kullback–Leibler divergence KL(original ‖ module), else the mean squared difference.

    Parameters
    ----------
    artifact
        Whose inputs the modules take.
    sample
        The examples that are answered.

    Raises
    ------
    BuildError
        If the original cannot answer, or nothing tells classes from values.
    """

    def __init__(self, artifact: Artifact, sample: Split, fit: Fit, plan: Healing) -> None:
        self.unit = "nats" if (classes := means_classes(sample, fit, plan)) else "mean squared difference"
        self.device = home()
        lessons = Lessons(sample, artifact, self.device)
        size = min(plan.micro_batch or AT_ONCE, AT_ONCE)
        places = [np.arange(start, min(start + size, len(sample))) for start in range(0, len(sample), size)]
        self._lessons = [lessons.at(part) for part in places]
        self._step = distilling(Teacher(fit.teacher, sample, self.device, at_once=size), None, 1.0, 1.0, classes)
        self._names = form.keywords(artifact)

    def __call__(self, module: torch.nn.Module) -> float:
        """Of a module on :attr:`device`, in eval mode; infinite where an answer is not finite."""
        learner, total = Learner(module, self._names).eval(), 0.0
        with repeatable(self.device), torch.no_grad():
            for lesson in self._lessons:
                total += float(self._step(learner, lesson)) * len(lesson)
        mean = total / sum(map(len, self._lessons))
        return mean if math.isfinite(mean) else math.inf
