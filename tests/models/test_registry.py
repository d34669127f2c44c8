"""The registry: which keys exist, what it refuses, and how a new file joins it."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import models
from models import create_model, export_tf_variables, has_batch_norm, list_models, load_tf_variables, registry
from tests.models.small import KEYS, SIZES, small_model

NINE = [
    "gated_netvlad_h1024c16",
    "bert_l2h12",
    "bert_cross_mean_l2h8",
    "bert_l3h12",
    "bert_cross_attn_l2h8",
    "bert_first_l2h12",
    "mix_nextvlad_iter300",
    "mix_nextvlad_iter60",
    "bert_mean_l2h12",
]
DOCS = Path(models.__file__).parents[1] / "docs"
TENTH = (DOCS / "adding-a-model.md").read_text().split("```python\n")[1].split("```")[0]
"""The file that the documentation shows."""


@pytest.fixture
def extra_folder(tmp_path, monkeypatch):
    """A second folder of the package, as if its files lay in models/; undone afterwards."""
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    before = dict(registry._REGISTRY)
    yield tmp_path
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)
    for name in [name for name in sys.modules if name.startswith("models.extra_")]:
        del sys.modules[name]
        delattr(models, name.removeprefix("models."))


def test_the_nine_come_in_the_tables_order():
    assert list_models() == NINE


def test_listing_models_imports_no_torch():
    program = "import sys, models; print(len(models.list_models()), 'torch' in sys.modules)"
    root = Path(models.__file__).parents[1]
    shown = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["9", "False"]


def test_one_file_is_enough_for_a_tenth_architecture(extra_folder):
    (extra_folder / "extra_mean_frame.py").write_text(TENTH)
    assert list_models() == [*NINE, "mean_frame", "mean_frame_strong_l2"]
    model = create_model("mean_frame", 7, (6, 2), l2=0.1)
    frames, num_frames = torch.rand(3, 5, 8), torch.tensor([5, 5, 2])
    output = model(frames, num_frames)
    assert output.probabilities.shape == (3, 7)
    (output.probabilities.sum() + model.l2_penalty()).backward()
    variables = export_tf_variables(model)
    assert variables["tower/head/branches/0/weights"].shape == (8, 7)
    other = create_model("mean_frame", 7, (6, 2))
    load_tf_variables(other, variables)
    assert torch.equal(other(frames, num_frames).probabilities, output.probabilities)
    kept = model.restrict_classes(torch.tensor([6, 0]))(frames, num_frames).probabilities
    torch.testing.assert_close(kept, output.probabilities[:, [6, 0]])


def test_a_key_is_taken_once(extra_folder):
    (extra_folder / "extra_a.py").write_text(TENTH)
    create_model("mean_frame")
    with pytest.raises(ValueError, match=r"'mean_frame' is already registered by models\.extra_a\.MeanFrame"):
        registry.register_model("mean_frame")(type(create_model("mean_frame")))
    (extra_folder / "extra_b.py").write_text(TENTH)
    with pytest.raises(ValueError, match=r"both models\.extra_a and models\.extra_b"):
        list_models()


def test_unknown_keys_and_options_are_named():
    with pytest.raises(ValueError, match=r"no model 'bert'; choose one of gated_netvlad_h1024c16, bert_l2h12"):
        create_model("bert")
    with pytest.raises(ValueError, match=r"bert_l2h12 has no option 'num_clusters'; its options are num_layers"):
        create_model("bert_l2h12", num_clusters=8)
    with pytest.raises(ValueError, match=r"feature_sizes = \(1152,\)"):
        create_model("bert_l2h12", feature_sizes=(1152,))
    with pytest.raises(ValueError, match=r"feature_sizes = \(0, 0\)"):
        create_model("bert_l2h12", feature_sizes=(0, 0))
    with pytest.raises(ValueError, match=r"num_classes = 0"):
        create_model("bert_l2h12", num_classes=0)
    with pytest.raises(AttributeError, match="create_modle"):
        _ = models.create_modle


@pytest.mark.parametrize("key", models.list_models())
def test_without_audio_a_model_works_or_says_that_it_needs_both(key):
    bert = {"intermediate_size": 8, "num_heads": 2, "num_layers": 1}
    vlad = {"num_clusters": 4, "hidden_size": 16, "num_sampled_frames": 10}
    if "cross" not in key:
        model = create_model(key, num_classes=3, feature_sizes=(16, 0), **(bert if key.startswith("bert") else vlad))
        frames, num_frames = torch.rand(2, 5, 16), torch.tensor([5, 5])
        assert model.train()(frames, num_frames).probabilities.shape == (2, 3)
        with torch.no_grad():
            whole = model.eval()(frames, num_frames).probabilities
            windows = torch.arange(10).reshape(2, 5)
            shared = model.score_windows(model.embed_frames(frames.flatten(0, 1)), windows, num_frames)
        torch.testing.assert_close(shared, whole, atol=1e-6, rtol=1e-5)
        return
    with pytest.raises(ValueError, match=rf"feature_sizes = \(16, 0\): {key} looks at rgb and audio apart"):
        create_model(key, num_classes=3, feature_sizes=(16, 0))


FREE_OF_WIDTH = [
    ("bert_l2h12", {"num_heads": 10}, r"num_heads = 10: must divide the encoder width 96"),
    ("bert_cross_mean_l2h8", {"num_heads": 12}, r"num_heads = 12: must divide the encoder width 64 and 32"),
    ("bert_cross_mean_l2h8", {"num_layers": 1}, r"num_layers = 1: must be at least 2"),
    ("bert_l2h12", {"num_layers": 0}, r"num_layers = 0: must be an integer above zero"),
    ("bert_l2h12", {"num_layers": 2.0}, r"num_layers = 2.0: must be an integer"),
    ("bert_l2h12", {"intermediate_size": 0}, r"intermediate_size = 0"),
    ("bert_l2h12", {"segment_frames": 0}, r"segment_frames = 0"),
    ("bert_l2h12", {"num_mixtures": 0}, r"num_mixtures = 0"),
    ("bert_l2h12", {"pooling": "first"}, r"pooling = 'first': choose one of \('concat', 'last', 'mean', 'attention'\)"),
    ("bert_l2h12", {"dropout": 1.0}, r"dropout = 1.0"),
    ("bert_l2h12", {"l2": -1e-6}, r"l2 = -1e-06"),
    ("gated_netvlad_h1024c16", {"num_clusters": 5}, r"num_clusters = 5: must be even"),
    ("gated_netvlad_h1024c16", {"hidden_size": 0}, r"hidden_size = 0"),
    ("gated_netvlad_h1024c16", {"num_sampled_frames": 0}, r"num_sampled_frames = 0"),
    ("gated_netvlad_h1024c16", {"bn_momentum": 0.0}, r"bn_momentum = 0.0"),
    ("mix_nextvlad_iter60", {"num_clusters": 7}, r"num_clusters = 7: must be even"),
    ("mix_nextvlad_iter60", {"num_groups": 3}, r"num_groups = 3: must be even"),
    ("mix_nextvlad_iter60", {"num_groups": 12}, r"num_groups = 12: the 12 rgb groups must divide .* 2 x 64"),
    ("mix_nextvlad_iter60", {"num_groups": 256}, r"num_groups = 256: the 256 rgb groups"),
    ("mix_nextvlad_iter60", {"num_groups": 128, "expansion": 1}, r"the 128 rgb groups must divide"),
    ("mix_nextvlad_iter60", {"gating_reduction": 7}, r"gating_reduction = 7: must divide hidden_size = 2048"),
    ("mix_nextvlad_iter60", {"temperature": 0.0}, r"temperature = 0.0"),
    ("mix_nextvlad_iter60", {"num_branches": 0}, r"num_branches = 0"),
    ("mix_nextvlad_iter60", {"dropout": -0.1}, r"dropout = -0.1"),
    ("mix_nextvlad_iter60", {"distillation_weight": -1.0}, r"distillation_weight = -1.0"),
    ("mix_nextvlad_iter60", {"branch_loss_weight": -1.0}, r"branch_loss_weight = -1.0"),
    ("mix_nextvlad_iter60", {"bn_momentum": 2.0}, r"bn_momentum = 2.0"),
]


@pytest.mark.parametrize(("key", "overrides", "message"), FREE_OF_WIDTH)
def test_options_that_do_not_fit_are_refused_by_name(key, overrides, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        create_model(key, 20, SIZES, **overrides)


def test_audio_groups_must_divide_too():
    with pytest.raises(ValueError, match=r"the 4 audio groups must divide expansion x audio size = 1 x 6"):
        create_model("mix_nextvlad_iter60", 20, (64, 6), expansion=1)


def test_the_list_of_options_is_frozen():
    bert = "num_layers num_heads intermediate_size pooling segment_frames dropout mask_padding num_mixtures l2"
    netvlad = "num_clusters hidden_size num_sampled_frames num_mixtures l2 bn_momentum"
    mix = (
        "num_clusters hidden_size num_groups expansion gating_reduction num_branches temperature distillation_weight "
        "num_sampled_frames dropout l2 bn_momentum branch_loss_weight"
    )
    for key in KEYS:
        expected = bert if "bert" in key else mix if "mix" in key else netvlad
        assert [field.name for field in dataclasses.fields(small_model(key).Options)] == expected.split()
    documented = (DOCS / "fidelity.md").read_text().split("## Options of the models")[1]
    assert all(f"`{name}`" in documented for name in f"{bert} {netvlad} {mix}".split())


def test_defaults_are_those_of_the_table():
    with torch.device("meta"):
        options = {key: create_model(key).options for key in KEYS}
    assert options["gated_netvlad_h1024c16"].num_clusters == 16
    assert options["gated_netvlad_h1024c16"].num_sampled_frames == 5
    assert (options["bert_l2h12"].num_layers, options["bert_l2h12"].pooling) == (2, "concat")
    assert (options["bert_l3h12"].num_layers, options["bert_l3h12"].num_heads) == (3, 12)
    assert options["bert_first_l2h12"].pooling == "last"
    assert options["bert_mean_l2h12"].pooling == "mean"
    assert (options["bert_cross_attn_l2h8"].num_heads, options["bert_cross_attn_l2h8"].pooling) == (8, "attention")
    assert options["bert_cross_mean_l2h8"].pooling == "mean"
    assert options["mix_nextvlad_iter300"].num_sampled_frames == 300
    assert options["mix_nextvlad_iter60"].num_sampled_frames == 60
    assert all(options[key].mask_padding is False for key in KEYS if "bert" in key)
    assert {options[key].l2 for key in KEYS} == {1e-6, 1e-8}


def test_which_models_have_batch_norm():
    assert [key for key in KEYS if has_batch_norm(key)] == [key for key in KEYS if "vlad" in key]
    assert has_batch_norm("mix_nextvlad_iter60", 20, SIZES, num_clusters=6, hidden_size=32)
