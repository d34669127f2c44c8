"""Small instances of all nine architectures, for tests of what they have in common."""

import torch

from models import create_model, list_models

SIZES = (64, 32)
NUM_CLASSES = 20
NUM_FEATURES = sum(SIZES)


def small_options(key):
    if "netvlad" in key and "mix" not in key:
        return {"num_clusters": 4, "hidden_size": 24}
    if "nextvlad" in key:
        return {"num_clusters": 6, "hidden_size": 32, "num_sampled_frames": 60 if "60" in key else 300}
    narrow = {"width": 24, "num_heads": 4, "num_layers": 2} if key == "frame_scorer" else {}
    return {"intermediate_size": 48, **narrow}


def small_model(key, seed=0, **more):
    """Build one with weights and running statistics that are all different from their initial values."""
    torch.manual_seed(seed)
    model = create_model(key, NUM_CLASSES, SIZES, **{**small_options(key), **more})
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            noise = torch.randn_like(tensor) * (0.5 if tensor.ndim == 1 else 1 / tensor.shape[-1] ** 0.5)
            if name.endswith("running_var"):
                tensor.copy_(0.5 + noise.abs())
            else:
                tensor.add_(noise)
    return model


def small_batch(batch_size=4, num_steps=5, seed=0):
    """Give L2-normalised frames [B, T, 96] padded with zeros, and num_frames [B]."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.nn.functional.normalize(torch.randn(batch_size, num_steps, NUM_FEATURES, generator=generator), dim=2)
    num_frames = torch.randint(1, num_steps + 1, (batch_size,), generator=generator)
    num_frames[0] = num_steps
    return frames * (torch.arange(num_steps) < num_frames[:, None])[:, :, None], num_frames


KEYS = list_models()[:9]
VLAD_KEYS = [key for key in KEYS if "vlad" in key]
BERT_KEYS = [key for key in KEYS if "bert" in key]
