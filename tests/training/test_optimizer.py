"""An optimizer's state goes through tensors and JSON, and training goes on as if it had not stopped."""

import json

import pytest
import torch

from paretune.training import optimizer
from paretune.training.plan import Plan


def module():
    torch.manual_seed(0)
    parts = torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(12, 2)
    made = torch.nn.Sequential(*parts)
    made[3].bias.requires_grad_(False)
    return made.to(memory_format=torch.channels_last)


def steps(net, opt, numbers):
    for number in numbers:
        x = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(number))
        opt.zero_grad()
        net(x).square().mean().backward()
        opt.step()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_state_travels(name):
    plan = Plan(optimizer=name, learning_rate=0.05)
    first = module()
    one = optimizer.made(first, plan)
    steps(first, one, range(3))
    tensors, scalars = optimizer.state_of(one)
    copies = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}
    second = module()
    second.load_state_dict(first.state_dict())
    two = optimizer.made(second, plan)
    optimizer.load_state(two, copies, json.loads(json.dumps(scalars)))
    for net, opt in ((first, one), (second, two)):
        steps(net, opt, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert any(tensor.ndim == 4 for tensor in tensors.values())


def test_decay_leaves_out_biases_and_norms_and_nothing_frozen_is_taken():
    net = module()
    groups = optimizer.made(net, Plan(weight_decay=0.3)).param_groups
    decayed = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    expected = {id(net[0].weight): 0.3, id(net[3].weight): 0.3}
    expected |= {id(p): 0.0 for p in (net[0].bias, net[1].weight, net[1].bias)}
    assert decayed == expected
