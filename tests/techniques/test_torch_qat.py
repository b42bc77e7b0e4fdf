"""Quantised modules learn, open again anywhere, and become integer kernels whose answers are a step away at most."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import quantised_nets
import torch
import training_nets as nets
from onnx import numpy_helper
from torch import nn

from paretune.ask.artifact import Artifact, TensorSpec
from paretune.ask.data import Split
from paretune.ask.event import Event
from paretune.build.candidate import Builder
from paretune.build.recipe import Recipe
from paretune.build.store import Store
from paretune.build.technique import Fit
from paretune.errors import BuildError
from paretune.forms import onnx as onnx_form
from paretune.forms import openvino as openvino_form
from paretune.forms import torch as form
from paretune.forms import torch_count
from paretune.forms.torch_edits import Remove
from paretune.forms.torch_fake_quant import quantisers, unrounded
from paretune.techniques.onnx_to_openvino import OnnxToOpenvino
from paretune.techniques.torch_distill import TorchDistill
from paretune.techniques.torch_prune_blocks import TorchPruneBlocks
from paretune.techniques.torch_prune_channels import TorchPruneChannels
from paretune.techniques.torch_prune_heads import TorchPruneHeads
from paretune.techniques.torch_qat import TorchQat
from paretune.techniques.torch_to_onnx import TorchToOnnx
from paretune.testing import TechniqueConformance
from paretune.training import quantisation

SHAPE = (3, 12, 12)
CLASSES = 4
QUICK = TorchQat(epochs=2, batch=32, learning_rate=0.005, samples=64)
PLAIN = dataclasses.replace(QUICK, epochs=0)


class TestTorchQat(TechniqueConformance):
    technique = TorchQat


def images(count: int = 160, seed: int = 0) -> list[tuple[np.ndarray, np.int64]]:
    """Four classes, told apart by where a bright spot lies."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        label = number % CLASSES
        image = rng.standard_normal(SHAPE).astype(np.float32) * 0.5
        row, column = 6 * (label // 2), 6 * (label % 2)
        image[label % 3, row : row + 6, column : column + 6] += 1.5
        made.append((image, np.int64(label)))
    return made


def batch(count: int = 96) -> np.ndarray:
    return np.stack([image for image, _ in images(count, seed=5)])


def sealed(live: nn.Module, root: Path, shape: tuple[int, ...] = SHAPE, outputs: int = CLASSES) -> Artifact:
    root.mkdir(parents=True, exist_ok=True)
    form.save(live, root)
    inputs = (TensorSpec("image", "float32", ("batch", *shape)),)
    return Artifact.seal(
        "torch", root, inputs, (TensorSpec("logits", "float32", ("batch", outputs)),), origin=live
    )  # fmt: skip


def live() -> nn.Module:
    """A residual net that knows the four classes, its statistics those of the images."""
    net = quantised_nets.seeded(quantised_nets.ResNet)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        items = images()
        x, y = torch.from_numpy(np.stack([x for x, _ in items])), torch.tensor([int(y) for _, y in items])
        optimizer = torch.optim.SGD(net.parameters(), 0.05, 0.9)
        net.train()
        for step in range(40):
            places = torch.arange(step * 32, step * 32 + 32) % len(y)
            loss = nn.functional.cross_entropy(net(x[places]), y[places])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Artifact:
    torch.set_num_threads(1)
    return sealed(live(), tmp_path_factory.mktemp("original"))


def fitted(artifact: Artifact, scratch: Path, items=None, **options) -> Fit:
    data = Split.whole(images() if items is None else items, None, "train")
    return Fit(data, None, options.pop("teacher", artifact), 0, scratch, **options)


def exported(quantised: Artifact, scratch: Path, **knobs) -> Artifact:
    return TorchToOnnx(**knobs).apply(quantised, fitted(quantised, scratch))


def by_torch(artifact: Artifact) -> np.ndarray:
    return form.call(form.restore(artifact), artifact, (batch(),))[0]


def by_onnxruntime(artifact: Artifact) -> np.ndarray:
    return onnx_form.session(artifact.path(".onnx"), 1).run(None, {"image": batch()})[0]


def by_openvino(artifact: Artifact) -> tuple[np.ndarray, Counter]:
    """Answers, and (kind, precision) of what ran."""
    compiled = openvino_form.core().compile_model(
        openvino_form.load(artifact), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    facts = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    ran = Counter((str(fact["layerType"].value), str(fact["runtimePrecision"].value)) for fact in facts)
    return compiled([batch()])[0], ran


def assert_within_a_step(found: np.ndarray, wanted: np.ndarray, quantised: Artifact) -> None:
    """Two sound roundings differ by √2 / √12 of a step in the root mean square at worst."""
    step = a_step(quantised)
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 0.45 * step
    assert np.abs(found - wanted).max() < 2 * step


def a_step(quantised: Artifact) -> float:
    """√12 times the root mean square by which rounding activations changes the answers."""
    module = form.restore(quantised)
    with unrounded(module):
        exact = form.call(module, quantised, (batch(),))[0]
    return float(np.sqrt(12 * np.mean((by_torch(quantised) - exact) ** 2)))


@pytest.fixture(scope="module")
def quantised(original, tmp_path_factory) -> Artifact:
    return QUICK.apply(original, fitted(original, tmp_path_factory.mktemp("quantised")))


@pytest.fixture(scope="module")
def graph(quantised, tmp_path_factory) -> Artifact:
    return exported(quantised, tmp_path_factory.mktemp("graph"))


def test_answers_stay_what_they_were_and_the_counts_too(original, quantised):
    before, after = by_torch(original), by_torch(quantised)
    assert np.mean(before.argmax(1) == after.argmax(1)) > 0.97
    assert not np.array_equal(before, after)
    norms = sum(p.numel() for m in original.origin.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    assert quantised.parameters == sum(p.numel() for p in original.origin.parameters()) - norms // 2
    assert quantised.macs == torch_count.macs(original.origin, None, (batch(1),))
    assert quantised.notes[-2] == (
        "torch_qat: 8 layers with weights of 8 bits, 12 activations of 8 bits (4 with a zero point), "
        "7 batch normalisations folded"
    )
    assert quantised.notes[-1].startswith("torch_qat: 2 epochs: loss ")


def test_training_changed_weights_and_scales(original, quantised, tmp_path):
    start = PLAIN.apply(original, fitted(original, tmp_path))
    untrained, trained = (dict(quantisers(form.restore(one))) for one in (start, quantised))
    assert untrained.keys() == trained.keys()
    assert all(not torch.equal(untrained[path].scale, trained[path].scale) for path in untrained)
    assert start.notes[-1] == "torch_qat: calibrated on 64 examples, not trained"


def test_a_scale_that_learns_to_vanish_is_held_and_told(original, tmp_path):
    module = form.restore(original)
    wish = quantisation.Wish(lambda layers: dict.fromkeys(layers, 8), 8, True, True, False, False, True, 8, 0.0)
    made = quantisation.quantised(module, original, fitted(original, tmp_path), "here", wish)
    found = dict(quantisers(module))
    first = {path: quantiser.scale.detach().clone() for path, quantiser in found.items()}
    path, vanished = next((path, one) for path, one in found.items() if path.endswith("input_quantiser"))
    with torch.no_grad():
        vanished.scale.fill_(-1.0)
    made.each(1, 2)
    assert torch.equal(vanished.scale, first.pop(path) / 1024)
    assert all(torch.equal(found[other].scale, scale) for other, scale in first.items())
    (line,) = made.finish()
    assert line.endswith(f"(lower learning_rate, or keep them in float): {path.removesuffix('_quantiser')}")


def test_folding_after_the_training_makes_no_scale_fall(original, tmp_path):
    module = form.restore(original)
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.mul_(1e-4)
    wish = quantisation.Wish(lambda layers: dict.fromkeys(layers, 8), 8, True, True, False, False, True, 8, 0.5)
    made = quantisation.quantised(module, original, fitted(original, tmp_path), "here", wish)
    before = {path: quantiser.scale.detach().clone() for path, quantiser in quantisers(module)}
    assert made.finish() == []
    folded = [path for path, one in quantisers(module) if bool((one.scale.detach() < before[path] / 1024).any())]
    assert norms
    assert folded, "the scales of weights are smaller, because the weights are"


def wished(learned: bool, freeze: float) -> quantisation.Wish:
    return quantisation.Wish(
        lambda layers: dict.fromkeys(layers, 8), 8, True, True, False, False, learned, 8, freeze
    )  # fmt: skip


def test_batch_normalisation_stands_still_from_its_share_of_the_steps_on(original, tmp_path):
    module = form.restore(original)
    made = quantisation.quantised(module, original, fitted(original, tmp_path), "here", wished(True, 0.5))
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 7
    means = []
    for done in (1, 2):
        module.train()
        made.each(done, 4)
        module(3 * torch.from_numpy(batch()))
        means.append([norm.running_mean.clone() for norm in norms])
    before = [part.running_mean for part in original.origin.modules() if isinstance(part, nn.BatchNorm2d)]
    assert not any(torch.equal(one, other) for one, other in zip(before, means[0], strict=True))
    assert all(torch.equal(one, other) for one, other in zip(*means, strict=True))


def test_scales_that_are_not_learnt_follow_their_weights(original, tmp_path):
    module = form.restore(original)
    made = quantisation.quantised(module, original, fitted(original, tmp_path), "here", wished(False, 0.0))
    layer = module.layer1[0].conv1
    first = layer.weight_quantiser.scale.clone()
    with torch.no_grad():
        layer.weight.mul_(3)
    made.each(1, 2)
    torch.testing.assert_close(layer.weight_quantiser.scale, 3 * first)
    with torch.no_grad():
        layer.weight.mul_(2)  # as a mean of weights is laid after the last step
    made.finish()
    torch.testing.assert_close(layer.weight_quantiser.scale, 6 * first)
    assert not layer.weight_quantiser.scale.requires_grad


def test_onnxruntime_runs_integer_kernels_and_answers_within_a_step(quantised, graph):
    assert graph.precision == "int8"
    ran = onnx_form.kernel_counts(graph.path(".onnx"), (batch(),))
    assert (ran["QLinearConv"], ran["QLinearAdd"]) == (7, 3)
    assert "Conv" not in ran
    products = sum(ran.get(kind, 0) for kind in ("QLinearConv", "QGemm", "QLinearMatMul", "Gemm", "MatMul"))
    assert products == 8
    told = (
        f"torch_to_onnx: onnxruntime computes {products - ran.get('Gemm', 0)} of 8 products in integers (7 QLinearConv"
    )
    assert graph.notes[-1].startswith(told)
    assert ("and in float 1 Gemm" in graph.notes[-1]) == ("Gemm" in ran)
    wanted, found = by_torch(quantised), by_onnxruntime(graph)
    assert np.mean(wanted.argmax(1) == found.argmax(1)) > 0.98
    assert_within_a_step(found, wanted, quantised)


def test_layers_that_onnxruntime_computes_in_float_after_all_are_told(original, tmp_path):
    made = dataclasses.replace(PLAIN, keep=("layer2",)).apply(original, fitted(original, tmp_path / "made"))
    graph = exported(made, tmp_path / "graph")
    ran = onnx_form.kernel_counts(graph.path(".onnx"), (batch(),))
    assert ran["QLinearConv"] == 5
    assert graph.notes[-1].startswith("torch_to_onnx: onnxruntime computes ")
    assert " of 8 products in integers (5 QLinearConv" in graph.notes[-1]
    floats = [kind for kind in ("Conv", "FusedConv") if kind in ran]
    assert sum(ran[kind] for kind in floats) == 2
    assert all(f"{ran[kind]} {kind}" in graph.notes[-1].partition(", and in float ")[2] for kind in floats)


def test_openvino_runs_integer_kernels_and_answers_within_a_step(quantised, graph, tmp_path):
    carried = OnnxToOpenvino().apply(graph, fitted(graph, tmp_path))
    assert carried.precision == "int8"
    wanted, (found, ran) = by_torch(quantised), by_openvino(carried)
    assert sum(count for (kind, how), count in ran.items() if kind == "Convolution" and how in {"u8", "i8"}) == 7
    assert np.mean(wanted.argmax(1) == found.argmax(1)) > 0.98
    assert_within_a_step(found, wanted, quantised)


def test_the_graph_holds_integers_and_tells_nothing_of_this_machine(original, quantised, graph, tmp_path):
    model = onnx.load(graph.path(".onnx"))
    kinds = Counter(tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1)
    assert kinds[onnx.TensorProto.INT8] == 8
    assert onnx.TensorProto.FLOAT not in kinds
    assert graph.size_bytes < 0.75 * exported(original, tmp_path).size_bytes
    assert not any(node.metadata_props for node in model.graph.node)
    text = model.SerializeToString()
    assert b"pkg.torch" not in text
    assert b"namespace" not in text
    scales = {path: quantiser.scale for path, quantiser in quantisers(form.restore(quantised))}
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    learned = held["layer1.0.conv1.weight_quantiser.scale"]
    assert np.array_equal(learned, scales["layer1.0.conv1.weight_quantiser"].detach().numpy())


@pytest.mark.parametrize(
    ("knobs", "kernels"),
    [
        ({"placement": "inputs"}, {"QLinearAdd": 0}),
        ({"symmetry": "symmetric"}, {}),  # onnxruntime's integer kernels want unsigned activations
        ({"weight_bits": 4, "first_last_bits": 4}, {"QLinearConv": 7}),
        ({"activation_bits": 4}, {}),
        ({"activation_bits": 0}, {"QLinearConv": 0}),
        ({"method": "ste", "calibration": "minmax", "epochs": 1}, {"QLinearConv": 7}),
        ({"freeze_batch_norm": 0.5, "epochs": 1}, {"QLinearConv": 7}),
    ],
)
def test_every_way_of_quantising_exports_as_it_answers(original, tmp_path, knobs, kernels):
    made = dataclasses.replace(PLAIN, **knobs).apply(original, fitted(original, tmp_path / "made"))
    graph = exported(made, tmp_path / "graph")  # compares with torch by itself
    ran = onnx_form.kernel_counts(graph.path(".onnx"), (batch(),))
    assert {kind: ran.get(kind, 0) for kind in kernels} == kernels
    assert graph.precision == ("fp32" if knobs.get("activation_bits") == 0 else "int8")
    wanted, found = by_torch(made), by_onnxruntime(graph)
    assert np.mean(wanted.argmax(1) == found.argmax(1)) > 0.95
    for _, quantiser in quantisers(form.restore(made)):
        if knobs.get("symmetry") == "symmetric":
            assert (quantiser.signed, quantiser.zero_point) == (True, 0)


def test_a_channel_that_is_multiplied_by_zero_is_no_nan(tmp_path):
    module = live()
    norm = next(part for part in module.modules() if isinstance(part, nn.BatchNorm2d))
    with torch.no_grad():
        norm.weight[1] = 0
    artifact = sealed(module, tmp_path / "live")
    made = dataclasses.replace(PLAIN, freeze_batch_norm=0.5).apply(artifact, fitted(artifact, tmp_path / "made"))
    assert np.isfinite(by_torch(made)).all()


def test_a_transposed_convolution_keeps_its_answers_where_normalisations_are_folded_late(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten(),
            nn.Linear(4 * 12 * 12, CLASSES),
        )  # fmt: skip
    net[1].running_var.copy_(torch.tensor([0.01, 0.1, 1.0, 10.0]))  # so that one scale fits no channel but one
    artifact = sealed(net.eval(), tmp_path / "live")
    late = dataclasses.replace(PLAIN, freeze_batch_norm=0.5)
    made = late.apply(artifact, fitted(artifact, tmp_path / "late"))
    wanted = by_torch(artifact)
    assert np.abs(by_torch(made) - wanted).max() < 0.1 * np.abs(wanted).max()
    assert {type(part) for part in form.restore(made).modules()}.isdisjoint({nn.BatchNorm2d})


def test_four_bits_take_half_the_room_where_the_operator_set_has_them(original, tmp_path):
    made = dataclasses.replace(PLAIN, weight_bits=4, first_last_bits=4).apply(
        original, fitted(original, tmp_path / "q")
    )
    eight, four = exported(made, tmp_path / "20"), exported(made, tmp_path / "21", opset=21)
    model = onnx.load(four.path(".onnx"))
    kinds = Counter(tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1)
    assert kinds[onnx.TensorProto.INT4] == 8
    held = sum(weight.numel() for name, weight in form.restore(made).named_parameters() if weight.ndim > 1)
    assert eight.size_bytes - four.size_bytes > 0.4 * held
    assert_within_a_step(by_onnxruntime(four), by_onnxruntime(eight), made)


def test_bits_of_layers_by_pattern(original, tmp_path):
    technique = dataclasses.replace(
        PLAIN, weight_bits=6, per_layer_bits=("layer1.*=4", "layer1.1.conv2=3"), keep=("layer2",)
    )
    made = technique.apply(original, fitted(original, tmp_path, keep=("linear",)))
    weights = {
        path.removesuffix(".weight_quantiser"): quantiser.bits
        for path, quantiser in quantisers(form.restore(made))
        if path.endswith("weight_quantiser")
    }
    assert weights == {
        "conv1": 8, "layer1.0.conv1": 4, "layer1.0.conv2": 4, "layer1.1.conv1": 4, "layer1.1.conv2": 3,
    }  # fmt: skip
    assert "weights left in float: layer2.0.conv1.weight, layer2.0.conv2.weight, linear.weight" in made.notes[-2]


def test_unknown_patterns_are_told_and_the_knobs_own_refused(original, tmp_path):
    said: list[list[str]] = []
    fit = fitted(
        original, tmp_path, keep=("nowhere.*", "conv1"), unmatched=lambda patterns: said.append(list(patterns))
    )
    PLAIN.apply(original, fit)
    assert said == [["nowhere.*"]]
    with pytest.raises(BuildError, match=r"nothing in the model is named 'layer2.0.conv9'; near it are layer2.0.conv"):
        dataclasses.replace(PLAIN, keep=("conv1", "layer2.0.conv9")).apply(original, fit)


class CutError(Exception):
    pass


def test_a_training_that_was_cut_off_goes_on_to_the_same_result(original, quantised, tmp_path):
    def stop(share: float, text: str) -> None:
        if text.startswith("epoch 2"):
            raise CutError

    fit = fitted(original, tmp_path / "cut", checkpoints=tmp_path / "kept")
    with pytest.raises(CutError):
        QUICK.apply(original, dataclasses.replace(fit, progress=stop))
    again = QUICK.apply(original, dataclasses.replace(fit, scratch=tmp_path / "again"))
    assert again.digest == quantised.digest


def answers(root: Path, store: Path) -> list[float]:
    """In whatever process: the quantised artefact's own answers."""
    artifact = dataclasses.replace(Artifact.open(store), origin=quantised_nets.ResNet())
    return form.call(form.restore(artifact), artifact, (batch(4),))[0].ravel().tolist()


def test_it_opens_in_a_fresh_process_without_pickle(quantised):
    code = "import json, sys; from pathlib import Path; import test_torch_qat as t; "
    code += "print(json.dumps(t.answers(Path(sys.argv[1]), Path(sys.argv[1]))))"
    paths = [str(Path(module.__file__).parent) for module in (sys.modules[__name__], nets, quantised_nets)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; {code}", str(quantised.root)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wanted = form.call(form.restore(quantised), quantised, (batch(4),))[0].ravel().tolist()
    assert json.loads(done.stdout) == wanted
    assert {Path(name).suffix for name in quantised.files} == {".safetensors", ".json"}


def test_a_pruned_and_taught_module_is_quantised_and_exported(original, tmp_path):
    edits = (Remove(("layer1.1",)),)
    (tmp_path / "pruned").mkdir()
    module = form.detach_copy(original.origin)
    edits[0].apply(module)
    form.save(module, tmp_path / "pruned", edits)
    pruned = Artifact.seal("torch", tmp_path / "pruned", original.inputs, original.outputs, origin=original.origin)
    taught = TorchDistill(epochs=1, batch=32).apply(pruned, fitted(pruned, tmp_path / "taught", teacher=original))
    made = QUICK.apply(taught, fitted(taught, tmp_path / "made", teacher=original))
    assert [edit.name for edit in form.edits_of(made)] == ["remove", "fold_batch_norm", "quantise"]
    ran = onnx_form.kernel_counts(exported(made, tmp_path / "graph").path(".onnx"), (batch(),))
    assert (ran["QLinearConv"], ran["QLinearAdd"]) == (5, 2)
    again = TorchDistill(epochs=1, batch=32).apply(made, fitted(made, tmp_path / "again", teacher=original))
    assert form.edits_of(again) == form.edits_of(made)


class Heard:
    def __init__(self, until: str = "") -> None:
        self.cached: list[bool] = []
        self.until = until

    def on(self, event: Event) -> None:
        if event.kind == "step":
            self.cached.append(event.data["cached"])
        if self.until and self.until in event.text:
            raise KeyboardInterrupt


def test_the_whole_chain_is_one_recipe_whose_steps_are_kept_and_gone_on_with(original, tmp_path):
    steps = (
        TorchPruneBlocks(remove=("layer1.1",), epochs=1, batch=32), TorchDistill(epochs=3, batch=32),
        dataclasses.replace(QUICK, epochs=1), TorchToOnnx(), OnnxToOpenvino(),
    )  # fmt: skip

    def built(root: Path, heard: Heard, chain=steps) -> Artifact:
        root.mkdir(exist_ok=True)
        return Builder(Store(root / "store"), original, fitted(original, root), heard).build(Recipe(chain))

    whole = Heard()
    end = built(tmp_path / "whole", whole)
    assert (end.form, end.precision, whole.cached) == ("openvino", "int8", [False] * 5)
    assert np.mean(by_openvino(end)[0].argmax(1) == by_torch(original).argmax(1)) > 0.9
    other = Heard()
    built(tmp_path / "whole", other, (*steps[:2], dataclasses.replace(QUICK, epochs=1, weight_bits=4), *steps[3:]))
    assert other.cached == [True, True, False, False, False]
    with pytest.raises(KeyboardInterrupt):
        built(tmp_path / "broken", Heard(until="epoch 3 of 3"))
    resumed = Heard()
    assert built(tmp_path / "broken", resumed).digest == end.digest
    assert resumed.cached == [True, False, False, False, False]


def test_a_quantised_module_loses_blocks_and_is_exported(quantised, original, tmp_path):
    technique = TorchPruneBlocks(remove=("layer1.1",), epochs=0, sample=32)
    left = technique.apply(quantised, fitted(quantised, tmp_path / "left", teacher=original))
    ran = onnx_form.kernel_counts(exported(left, tmp_path / "graph").path(".onnx"), (batch(),))
    assert (ran["QLinearConv"], ran["QLinearAdd"]) == (5, 2)


def test_heads_go_before_quantising_and_that_is_said(tmp_path):
    artifact, items = encoded(tmp_path / "model")
    made = PLAIN.apply(artifact, fitted(artifact, tmp_path / "made", items))
    with pytest.raises(BuildError, match=r"the model is quantised, .* — put this step before torch_qat"):
        TorchPruneHeads(epochs=0).apply(made, fitted(made, tmp_path / "left", items, teacher=artifact))


class Shared(nn.Module):
    """One weight in two layers, one layer called twice, groups, and transposed convolutions, with groups too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.groups = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.one, self.other = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.other.weight = self.one.weight
        self.down = nn.Conv2d(8, 8, 2, stride=2)
        self.up, self.upgroups = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.ConvTranspose2d(8, 4, 3, padding=1, groups=2)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.groups(torch.relu(self.first(x))))
        x = torch.relu(self.one(x))
        x = torch.relu(self.other(torch.relu(self.one(x))))
        x = torch.relu(self.up(torch.relu(self.down(x))))
        return self.head(torch.relu(self.upgroups(x)).mean((2, 3)))


def test_shared_weights_layers_called_twice_groups_and_transposed_convolutions_are_quantised(tmp_path):
    artifact = sealed(quantised_nets.seeded(Shared), tmp_path / "live")
    made = dataclasses.replace(QUICK, epochs=1).apply(artifact, fitted(artifact, tmp_path / "made"))
    module = form.restore(made)
    assert module.one.weight is module.other.weight
    assert {path for path, one in quantisers(module) if path.endswith("weight_quantiser")} >= {
        f"{name}.weight_quantiser" for name in ("first", "groups", "one", "other", "down", "up", "upgroups", "head")
    }
    graph = exported(made, tmp_path / "graph")
    assert_within_a_step(by_onnxruntime(graph), by_torch(made), made)


def test_a_quantised_module_is_pruned_and_exported(quantised, original, tmp_path):
    technique = TorchPruneChannels(epochs=0, macs_ratio=0.8, calibration=64, round_to=1)
    narrow = technique.apply(quantised, fitted(quantised, tmp_path / "narrow", teacher=original))
    assert narrow.macs <= 0.8 * quantised.macs
    module = form.restore(narrow)
    layers = {path: part for path, part in module.named_modules() if hasattr(part, "weight_quantiser")}
    assert any(len(part.weight) < len(original.origin.get_submodule(path).weight) for path, part in layers.items())
    assert all(part.weight_quantiser.scale.shape == (len(part.weight),) for part in layers.values())
    ran = onnx_form.kernel_counts(exported(narrow, tmp_path / "graph").path(".onnx"), (batch(),))
    assert ran["QLinearConv"] == 7


def test_rows_several_outputs_and_a_frozen_model(tmp_path):
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(nets.FEATURES, 16), nn.Linear(16, nets.CLASSES)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            hidden = torch.tanh(self.first(x))
            return {"hidden": hidden, "logits": self.second(hidden)}

    module = nets.net(0, Rows).requires_grad_(False)
    (tmp_path / "model").mkdir()
    form.save(module, tmp_path / "model")
    outputs = TensorSpec("hidden", "float32", ("batch", 16)), TensorSpec("logits", "float32", ("batch", nets.CLASSES))
    inputs = (TensorSpec("x", "float32", ("batch", nets.FEATURES)),)
    artifact = Artifact.seal("torch", tmp_path / "model", inputs, outputs, output_kind="dict", origin=module)
    fit = fitted(artifact, tmp_path / "made", nets.rows(200))
    made = dataclasses.replace(QUICK, epochs=1).apply(artifact, fit)
    assert torch.equal(form.restore(made).first.weight, module.first.weight)  # only scales were learned
    graph = TorchToOnnx().apply(made, fitted(made, tmp_path / "graph", nets.rows(200)))
    x = np.stack([x for x, _ in nets.rows(50, seed=9)])
    found = onnx_form.session(graph.path(".onnx"), 1).run(["hidden", "logits"], {"x": x})
    for one, wanted in zip(found, form.call(form.restore(made), made, (x,)), strict=True):
        assert np.abs(one - wanted).max() < 0.05 * np.abs(wanted).max()


class Encoder(nn.Module):
    """Tokens [batch, length] → logits: one layer of attention, its layer norm before what three layers take."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.before = nn.Embedding(30, 16), nn.LayerNorm(16)
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down, self.classify = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        y = self.before(x)
        query, key, value = (part(y).unsqueeze(1) for part in (self.query, self.key, self.value))
        x = x + self.out(nn.functional.scaled_dot_product_attention(query, key, value).squeeze(1))
        x = x + self.down(nn.functional.gelu(self.up(x)))
        return self.classify(x.mean(1))


def encoded(root: Path) -> tuple[Artifact, list[tuple[np.ndarray, np.int64]]]:
    """The encoder, and rows of seven tokens."""
    rng = np.random.default_rng(0)
    items = [(rng.integers(0, 30, 7), np.int64(number % 3)) for number in range(48)]
    module = nets.net(0, Encoder)
    root.mkdir()
    form.save(module, root)
    ids, logits = TensorSpec("ids", "int64", ("batch", "length")), TensorSpec("logits", "float32", ("batch", 3))
    return Artifact.seal("torch", root, (ids,), (logits,), origin=module), items


def test_an_encoder_of_any_length_runs_every_layer_in_integers(tmp_path):
    artifact, items = encoded(tmp_path / "model")
    made = PLAIN.apply(artifact, fitted(artifact, tmp_path / "made", items))
    assert "7 layers with weights of 8 bits, 5 activations of 8 bits" in made.notes[0]
    assert made.notes[1] == "torch_qat: weights left in float: words.weight"
    graph = TorchToOnnx().apply(made, fitted(made, tmp_path / "graph", items))
    x = np.stack([x for x, _ in items])
    ran = onnx_form.kernel_counts(graph.path(".onnx"), (x,))
    assert ran["MatMulIntegerToFloat"] == 6
    carried = OnnxToOpenvino().apply(graph, fitted(graph, tmp_path / "carried", items))
    compiled = openvino_form.core().compile_model(openvino_form.load(carried), "CPU")
    facts = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    layers = [str(one["runtimePrecision"].value) for one in facts if str(one["layerType"].value) == "FullyConnected"]
    assert layers == ["u8"] * 7


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"keep": ("*",)}, "every one of its layers is kept in float"),
        ({"per_layer_bits": ("layer9.*=4",)}, r"no layer that can be quantised is named 'layer9.\*'"),
        ({"per_layer_bits": ("conv1=9",)}, "'conv1=9' is not PATTERN=BITS"),
        ({"per_layer_bits": ("conv1",)}, "'conv1' is not PATTERN=BITS"),
    ],
)
def test_wrong_knobs_are_told_in_a_line(original, tmp_path, knobs, told):
    with pytest.raises(BuildError, match=told) as caught:
        dataclasses.replace(PLAIN, **knobs).apply(original, fitted(original, tmp_path))
    assert "\n" not in str(caught.value)


def test_what_cannot_be_quantised_is_told_in_a_line(original, quantised, tmp_path):
    with pytest.raises(BuildError, match="needs training data"):
        PLAIN.apply(original, dataclasses.replace(fitted(original, tmp_path), train=None))
    with pytest.raises(BuildError, match="quantised already"):
        PLAIN.apply(quantised, fitted(quantised, tmp_path))
    plain = sealed(nn.Sequential(nn.Flatten(), nn.LayerNorm(432)), tmp_path / "plain", outputs=432)
    with pytest.raises(BuildError, match="calls no convolution or linear layer"):
        PLAIN.apply(plain, fitted(plain, tmp_path / "b"))
    endless = [(image * (np.inf if number == 3 else 1), label) for number, (image, label) in enumerate(images(8))]
    with pytest.raises(BuildError, match="its input is not finite on the training data") as caught:
        PLAIN.apply(original, fitted(original, tmp_path / "c", endless))
    assert caught.value.where == "conv1"
