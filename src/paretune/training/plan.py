"""Plan: the knobs of the one training loop. Techniques that train inherit them."""

from __future__ import annotations

from dataclasses import dataclass

from paretune.ask.knob import knob
from paretune.errors import BuildError

PRECISIONS = ("fp32", "bf16", "fp16")
AUGMENTATIONS = ("none", "flip", "shift_flip", "erase_flip", "mix_flip")


@dataclass(frozen=True)
class Plan:
    """How a module is trained; imports no framework, so that a technique may be declared without one."""

    epochs: int = knob(10, "passes over the training data", low=1, high=10_000)
    batch: int = knob(128, "examples to a step of the optimizer", low=1, high=65_536)
    micro_batch: int = knob(
        0, "examples at once, at most; gradients of the rest are accumulated; 0: the whole batch", low=0, high=65_536
    )
    optimizer: str = knob("adamw", "AdamW, or SGD with Nesterov momentum", choices=("adamw", "sgd"))
    learning_rate: float = knob(1e-3, "the highest one, reached after the warm-up", low=1e-8, high=10.0)
    momentum: float = knob(0.9, "of SGD; AdamW's first beta", low=0.0, high=0.999)
    weight_decay: float = knob(
        0.01, "on weights with two axes or more; biases and normalisations are left out", low=0.0, high=10.0
    )
    warmup: float = knob(
        0.05, "share of the steps in which the rate rises; then it falls as a cosine", low=0.0, high=0.9
    )
    clip: float = knob(1.0, "the largest norm of a step's gradient; 0: any", low=0.0, high=1e6)
    precision: str = knob("fp32", "arithmetic of the forward pass; fp16 scales its losses", choices=PRECISIONS)
    augment: str = knob(
        "none", "images mirrored; moved too, by up to an eighth of their sides; a quarter of each side erased too; or "
        "blended with up to as much of another one too, and the label of one of both", choices=AUGMENTATIONS,
    )  # fmt: skip
    views: int = knob(
        0, "augmented views of the data, which epochs take in turn and a teacher answers once; 0: a new one each epoch",
        low=0, high=10_000,
    )  # fmt: skip
    average: float = knob(
        0.0, "share of the last steps whose weights are averaged, and batch normalisation is measured anew for the "
        "mean; 0: the last step's are kept", low=0.0, high=0.9,
    )  # fmt: skip
    activation_checkpointing: bool = knob(
        False, "blocks compute on the way back what they computed before, for less memory", choices=(True, False)
    )
    compile: bool = knob(False, "torch.compile the forward pass, which pays in long trainings", choices=(True, False))
    channels_last: bool = knob(False, "images in memory with their channels innermost", choices=(True, False))
    validation: float = knob(0.0, "share of the training data set aside to score each epoch on", low=0.0, high=0.5)
    patience: int = knob(
        0, "epochs without a better score after which to stop, and the best epoch is kept; 0: the last one is",
        low=0, high=10_000,
    )  # fmt: skip

    def demand_sound(self, where: str) -> None:
        """Refuse knobs that contradict each other.

        Raises
        ------
        BuildError
            If some do.
        """
        if self.patience and not self.validation:
            raise BuildError("patience needs a validation part", where=where, do="set validation, 0.1 say")
        if self.patience and self.average:
            raise BuildError("average and patience exclude each other", where=where, do="choose one of them")
        if self.views and self.augment == "none":
            raise BuildError("views needs images that are augmented", where=f"{where}.views", do="set augment too")
        if self.compile and self.activation_checkpointing:
            raise BuildError(
                "compile and activation_checkpointing exclude each other", where=where, do="choose one of them"
            )


@dataclass(frozen=True)
class Healing(Plan):
    """How a module is taught to answer as the original does, by distillation."""

    alpha: float = knob(0.8, "weight of the original's answers; the labels have the rest", low=0.0, high=1.0)
    temperature: float = knob(4.0, "by which logits are divided before they are compared", low=0.1, high=100.0)
    consensus: float = knob(
        0.0, "weight of what the original answers to all views of an example (or to a blend and its mirror image), "
        "their mean, in what it teaches for one",
        low=0.0, high=1.0,
    )  # fmt: skip
    teacher_precision: str = knob(
        "fp32", "arithmetic in which the original answers; below fp32 a step that asks it anew is shorter",
        choices=PRECISIONS,
    )  # fmt: skip
    answers: str = knob(
        "auto", "what the model answers; auto: classes where labels are whole numbers, values where they are floats",
        choices=("auto", "classes", "values"),
    )  # fmt: skip


@dataclass(frozen=True)
class Teaching(Healing):
    """Who is taught: the model as it comes, the workload's student, or a smaller one made of the model."""

    student: str = knob(
        "artifact", "what learns: the model as it comes, the workload's student, or one made of the model",
        choices=("artifact", "given", "made"),
    )  # fmt: skip
    width: float = knob(0.5, "share of their channels that the layers of a made student keep", low=0.01, high=1.0)
    depth: float = knob(
        1.0, "share of its blocks that each list of modules of a made student keeps", low=0.01, high=1.0
    )
    weights: str = knob("kept", "those of a made student: the model's, or drawn anew", choices=("kept", "fresh"))
