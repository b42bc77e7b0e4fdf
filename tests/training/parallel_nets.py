"""Run by ``torch.distributed.run``: trains a small net in as many processes as it starts; the first writes the end."""

from __future__ import annotations

import sys
from pathlib import Path

import training_nets as nets
from accelerate import PartialState
from safetensors.torch import save_file
from torch import nn

from paretune.errors import BuildError
from paretune.forms import torch as form
from paretune.training.device import home
from paretune.training.loss import supervised
from paretune.training.plan import Plan
from paretune.training.trainer import train


def main(folder: Path) -> None:
    def small() -> nn.Module:
        return nn.Sequential(nn.Linear(nets.FEATURES, 16), nn.ReLU(), nn.Linear(16, nets.CLASSES))

    home()
    place = PartialState()
    live = nets.net(0, small)
    artifact = nets.sealed(live, folder / f"model-{place.process_index}")
    module = form.restore(artifact)
    told = []
    for options in ({"batch": 1}, {"compile": True}):
        try:
            train(module, artifact, nets.split(nets.rows()), supervised(None), Plan(epochs=1, **options), 3)
        except BuildError as error:
            told.append(str(error))
    (folder / f"told-{place.process_index}").write_text("\n".join(told))
    normed = form.restore(nets.sealed(nets.net(), folder / f"normed-{place.process_index}"))
    train(normed, artifact, nets.split(nets.rows()), supervised(None), Plan(epochs=2, batch=16), 3)
    save_file(normed.state_dict(), folder / f"normed-{place.process_index}.safetensors")
    plan = Plan(epochs=2, batch=15, micro_batch=4, learning_rate=0.02)
    train(module, artifact, nets.split(nets.rows()), supervised(None), plan, 3)
    if place.is_main_process:
        save_file(module.state_dict(), folder / "end.safetensors")
    place.wait_for_everyone()
    place.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
