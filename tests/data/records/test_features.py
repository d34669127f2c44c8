import numpy as np
import torch

from tests.data.factory import normalise
from yt8m_assets.data.dataset.windows import dequantise
from yt8m_assets.data.records.features import dequantise_frames, model_inputs, valid_rows

BYTES = np.random.default_rng(3).integers(0, 256, (2, 6, 12), dtype=np.uint8)


def test_torch_and_numpy_dequantise_to_the_same_bits():
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 256)
    result = dequantise_frames(every, torch.ones(1, 1, dtype=torch.bool))
    assert np.array_equal(result.numpy().ravel(), dequantise(np.arange(256, dtype=np.uint8)))


def test_padding_is_zero_and_byte_zero_is_not():
    frames = torch.zeros(1, 3, 12, dtype=torch.uint8)
    inputs = model_inputs(frames, torch.tensor([[True, True, False]]))
    assert torch.allclose(inputs[0, 0], torch.full((12,), -1 / 12**0.5))
    assert not inputs[0, 2].any()


def test_inputs_equal_the_numpy_pipeline():
    valid = valid_rows(torch.tensor([6, 2]), 6)
    expected = dequantise(BYTES)
    expected[1, 2:] = 0
    assert np.allclose(model_inputs(torch.from_numpy(BYTES), valid).numpy(), normalise(expected), atol=1e-7)


def test_rows_are_appended_or_dropped_to_max_frames():
    valid = torch.ones(2, 6, dtype=torch.bool)
    frames = torch.from_numpy(BYTES)
    inputs = model_inputs(frames, valid)
    padded = model_inputs(frames, valid, max_frames=9)
    assert padded.shape == (2, 9, 12)
    assert torch.equal(padded[:, :6], inputs)
    assert not padded[:, 6:].any()
    assert torch.equal(model_inputs(frames, valid, max_frames=4), inputs[:, :4])
