"""Attention over a window's few frames: on a GPU by a kernel, anywhere else and after a failure by torch."""

import logging

import pytest
import torch

from models import short_attention as short
from models.transformer import EncoderLayer


@pytest.fixture
def kernel(monkeypatch):
    fresh = short._Kernel()
    monkeypatch.setattr(short, "kernel", fresh)
    return fresh


def by_hand(projected, num_heads):
    """Each head's softmax of products over the root of its width, in float64."""
    batch, frames, width = projected.shape
    query, key, value = projected.double().reshape(batch, frames, 3, num_heads, width // 3 // num_heads).unbind(2)
    weights = (torch.einsum("bqnd,bknd->bnqk", query, key) * query.shape[3] ** -0.5).softmax(3)
    return torch.einsum("bnqk,bknd->bqnd", weights, value).flatten(2)


def test_it_is_softmax_attention_and_says_its_shape_to_the_compiler(kernel):
    projected = torch.randn(3, 5, 3 * 12)
    found = short.short_attention(projected, 4)
    torch.testing.assert_close(found.double(), by_hand(projected, 4), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(short.attention(projected, 4), found)
    torch.library.opcheck(short.short_attention, (projected, 4), test_utils=("test_schema", "test_faketensor"))


def test_a_kernel_that_cannot_be_built_is_named_once_and_left(kernel, monkeypatch, caplog):
    calls = []

    def fails(*arguments):
        calls.append(arguments)
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    monkeypatch.setattr(kernel, "launch", fails)
    projected = torch.randn(2, 5, 3 * 8)
    with caplog.at_level(logging.WARNING):
        found = [short.short_attention(projected, 2) for _ in range(3)]
    assert all(torch.equal(each, short.attention(projected, 2)) for each in found)
    assert len(calls) == 1
    assert [record.message for record in caplog.records] == [
        "attention goes on without its kernel: RuntimeError: Failed to find C compiler."
    ]


def test_memory_that_runs_out_in_the_kernel_is_raised(kernel, monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(kernel, "launch", fails)
    with pytest.raises(torch.OutOfMemoryError):
        short.short_attention(torch.randn(2, 5, 24), 2)
    assert kernel.works


def test_a_layer_uses_it_without_mask_and_dropout_alone(kernel, monkeypatch):
    met = []
    monkeypatch.setattr(kernel, "launch", lambda projected, heads: met.append(1) or short.attention(projected, heads))
    monkeypatch.setattr("models.transformer.is_short", lambda projected: not torch.is_grad_enabled())
    layer, frames = EncoderLayer(24, 2, 48, dropout=0.5), torch.randn(2, 5, 24)
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    with torch.no_grad():
        layer.train()(frames)
        masked = layer.eval()(frames, mask)
        assert not met
        found = layer(frames)
    assert met
    torch.testing.assert_close(found, masked)
    layer(frames)
    assert len(met) == 1


def test_only_few_frames_on_a_gpu_without_a_gradient_are_short():
    assert not short.is_short(torch.randn(2, 5, 24))
    meta = torch.randn(2, 5, 24, device="meta")
    assert not short.is_short(meta)

    class OnGpu:
        is_cuda, shape = True, (2, 5, 24)

    class Long(OnGpu):
        shape = (2, 9, 24)

    with torch.no_grad():
        assert short.is_short(OnGpu())
        assert not short.is_short(Long())
    assert not short.is_short(OnGpu())
