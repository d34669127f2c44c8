"""Rebuild the golden cases (SPEC section 15): weights, inputs, intermediates, and the original's training step.

The training step here restates SPEC section 7 for the tests of the models alone; the product's is in yt8m_assets.
"""

import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch

from models import create_model, export_tf_variables, load_tf_variables
from models.tf_variables import tf_variables
from tests.golden import recipe

FOLDER = Path(__file__).parents[1] / "golden" / "models"
NETVLAD = {"num_clusters": 4, "hidden_size": 24}
NEXTVLAD = {"num_clusters": 6, "hidden_size": 32}
BERT = {"intermediate_size": 48}
CASES = {
    "bert_l2h12": ("bert_l2h12", BERT),
    "bert_l3h12": ("bert_l3h12", BERT),
    "bert_milfirst_l2h12": ("bert_first_l2h12", BERT),
    "bert_milmean_l2h12": ("bert_mean_l2h12", BERT),
    "bertcross_milattn_l2h8": ("bert_cross_attn_l2h8", BERT),
    "bertcross_milmean_l2h8": ("bert_cross_mean_l2h8", BERT),
    "netvlad_hs1024_cs8": ("gated_netvlad_h1024c16", NETVLAD),
    "mixnextvlad_iter300": ("mix_nextvlad_iter300", NEXTVLAD),
    "mixnextvlad_iter60": ("mix_nextvlad_iter60", NEXTVLAD),
}
LEARNING_RATE = 1e-4


@cache
def recipe_variable(name, shape, seed, rule):
    return recipe.fill(name, shape, seed, rule)


@dataclass(frozen=True)
class Golden:
    """One case: `bert_l2h12`, or at true widths `bert_l2h12__fulldim`."""

    name: str

    @cached_property
    def info(self):
        return json.loads((FOLDER / f"{self.name}.json").read_text())

    @cached_property
    def arrays(self):
        with np.load(FOLDER / f"{self.name}.npz") as stored:
            return {key: stored[key] for key in stored.files}

    @property
    def case(self):
        return self.name.removesuffix("__fulldim")

    @property
    def tiny(self):
        return self.case == self.name

    @property
    def options(self):
        key, tiny_options = CASES[self.case]
        full_options = {"num_clusters": 8} if "gated_netvlad" in key else {}
        return {**(tiny_options if self.tiny else full_options), **({} if "netvlad" in key else {"dropout": 0.0})}

    def build(self, dtype=torch.float32, **more):
        """Make the case's model without initialising its weights twice."""
        with torch.device("meta"):
            sizes = (self.info["rgb_dim"], self.info["audio_dim"])
            model = create_model(CASES[self.case][0], self.info["vocab_size"], sizes, **{**self.options, **more})
        return model.to_empty(device="cpu").to(dtype)

    def variables(self):
        if self.tiny:
            return {key[4:]: value for key, value in self.arrays.items() if key.startswith("var/")}
        seed, listed = self.info["seed"], self.info["variables"]
        return {
            name: recipe_variable(name, tuple(variable["shape"]), seed, tuple(variable["rule"]))
            for name, variable in listed.items()
        }

    def load(self, model, run):
        load_tf_variables(model, self.variables())
        return model.train(run.startswith("train"))

    def inputs(self, run, dtype=torch.float32):
        """Give frames, num_frames and frame_index of a run."""
        info = self.info["runs"][run]
        size = self.info["rgb_dim"] + self.info["audio_dim"]
        raw = recipe.raw_bytes(info["raw_seed"], 3, info["T"], size)
        assert hashlib.sha256(raw.tobytes()).hexdigest() == info["raw_sha256"]
        frames = raw.astype(np.float32) * np.float32(4 / 255) + np.float32(4 / 512 - 2)
        frames[np.arange(info["T"]) >= np.array(info["num_frames"])[:, None]] = 0
        frames /= np.sqrt(np.maximum(np.square(frames).sum(2, keepdims=True), 1e-12))
        if f"{run}/model_input" in self.arrays:
            # Segments keep the bytes past num_frames: they are real frames of the video there.
            frames = self.arrays[f"{run}/model_input"]
        index = self.arrays.get(f"{run}/sample_index")
        index = None if index is None else torch.from_numpy(index).long()
        return torch.from_numpy(frames).to(dtype), torch.tensor(info["num_frames"]), index

    def labels(self, run, dtype=torch.float32):
        return torch.from_numpy(self.arrays[f"{run}/labels"]).to(dtype)

    def expected(self, run, group):
        prefix = f"{run}/{group}/"
        return {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}


@contextmanager
def intermediates(model):
    """Collect what module boundaries show, under the names of the golden files."""
    seen = {}
    vlad_branches = isinstance(getattr(model, "head", None), torch.nn.Module) and hasattr(model, "mixture_weights")

    def keep(*names):
        def hook(module, inputs, output):
            parts = output if len(names) > 1 else [output]
            seen.update({name: part.detach() for name, part in zip(names, parts, strict=True)})

        return hook

    def keep_head(module, inputs, output):
        parts = inputs[0] if vlad_branches else [inputs[0]]
        seen.update({f"head_input_{i}": part.detach() for i, part in enumerate(parts)})
        if vlad_branches:
            seen.update({f"logits_{i}": part.detach() for i, part in enumerate(output)})

    handles = [model.head.register_forward_hook(keep_head)]
    encoders = ("encoder",) if hasattr(model, "encoder") else ("frame_encoder", "audio_encoder", "all_encoder")
    for i, name in enumerate(encoders):
        if hasattr(model, name):
            handles.append(getattr(model, name).register_forward_hook(keep(f"seq_{i}")))
    for i, vlad in enumerate(model.vlad.values() if hasattr(model, "vlad") else ()):
        names = [f"vlad_{2 * branch + i}" for branch in range(3)] if vlad_branches else [f"vlad_{i}"]
        handles.append(vlad.register_forward_hook(keep(*names)))
    if vlad_branches:
        handles.append(model.mixture_weights.linear.register_forward_hook(keep("mix_weight_logits")))
    yield seen
    for handle in handles:
        handle.remove()


def cross_entropy(probabilities, labels):
    likelihood = labels * (probabilities + 1e-5).log() + (1 - labels) * (1 - probabilities + 1e-5).log()
    return -likelihood.sum(1).mean()


def norm(tensor):
    """By rows: one float32 sum over tens of millions of values is off by up to 1 %."""
    return tensor.norm(dim=-1).double().norm().item()


class TensorFlowAdam:
    """Adam with epsilon outside the bias correction, after clipping each variable to norm 1."""

    def __init__(self, model):
        self.parameters = list(model.parameters())
        self.first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.second = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.count = 0

    @torch.no_grad()
    def step(self):
        self.count += 1
        rate = LEARNING_RATE * (1 - 0.999**self.count) ** 0.5 / (1 - 0.9**self.count)
        for parameter, first, second in zip(self.parameters, self.first, self.second, strict=True):
            gradient = parameter.grad
            gradient.mul_(1 / max(norm(gradient), 1.0))
            first.lerp_(gradient, 0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            parameter.addcdiv_(first, second.sqrt().add_(1e-8), value=-rate)


@dataclass
class Step:
    """What one training step shows."""

    output: object
    seen: dict
    losses: dict
    gradients: dict
    gradient_norms: dict
    statistics: dict
    after: dict


def training_step(model, golden, run, optimizer):
    """Forward, backward, clip and update once (unless optimizer is None); only what the case stores is copied."""
    dtype = next(model.parameters()).dtype
    frames, num_frames, index = golden.inputs(run, dtype)
    with intermediates(model) as seen:
        output = model(frames, num_frames, frame_index=index)
    label_loss, l2 = cross_entropy(output.probabilities, golden.labels(run, dtype)), model.l2_penalty()
    total = label_loss + output.regularization_loss + l2
    model.zero_grad()
    total.backward()
    losses = {
        "label_loss": label_loss.item(),
        "model_regularization_loss": output.regularization_loss.item(),
        "l2_regularization_loss": l2.item(),
        "total_loss": total.item(),
    }
    places = tf_variables(model)
    norms = {name: norm(place.tensor.grad) for name, place in places.items() if place.trainable}
    gradients = pick(places, golden.expected(run, "grad"), lambda tensor: tensor.grad)
    if optimizer is not None:
        optimizer.step()
    statistics = pick(places, golden.expected(run, "bn_after1"), lambda tensor: tensor)
    after = pick(places, golden.expected(run, "adam_after1"), lambda tensor: tensor)
    return Step(output, seen, losses, gradients, norms, statistics, after)


def pick(places, wanted, read):
    """Copy the named variables out of a model, in TensorFlow's layout."""
    picked = {}
    for name in wanted:
        tensor = read(places[name].tensor).detach()
        picked[name] = (tensor.T if places[name].transposed else tensor).clone().numpy()
    return picked


def export_sums(model):
    return {name: float(value.sum(dtype=np.float64)) for name, value in export_tf_variables(model).items()}
