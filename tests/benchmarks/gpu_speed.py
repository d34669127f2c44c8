"""What a device's training, prediction and reading cost, beside what its arithmetic and its memory could do."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.gpu_cases import FAMILIES, Setup
from tests.benchmarks.scale_index import recipe_over, write_data
from tests.memory_videos import MemoryVideos
from yt8m_assets.data.dataset.datasets import PretrainingDataset
from yt8m_assets.data.dataset.memory import load_videos
from yt8m_assets.prediction.blocks import ScoringOptions, SegmentIndex
from yt8m_assets.prediction.device_topk import DeviceTopK
from yt8m_assets.prediction.scoring import CellScores, ModelCells, score_videos
from yt8m_assets.progress import NullProgress
from yt8m_assets.ranking.topk import StreamingTopK
from yt8m_assets.storage.cache import Cache

Row = dict[str, Any]
BYTES_A_PARAMETER = 40
"""What an Adam step moves at least: gradient, weight and two moments, read and written, and the norm's pass."""
SHIFTS = (-1, 0, 1, 2)
_peaks: dict[str, float] = {}


def peaks(setup: Setup) -> Iterator[Row]:
    """The device's own matrix product and memory, which the others are shares of."""
    size = 512 if setup.tiny else 8192
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        a, b = (torch.randn(size, size, device=setup.device, dtype=dtype) for _ in range(2))
        seconds = setup.seconds(lambda a=a, b=b: a @ b)  # type: ignore[misc]
        _peaks[name] = 2 * size**3 / seconds
        yield {"what": f"matrix product, {name}", "teraflops": _peaks[name] / 1e12}
    source = torch.zeros(2**20 if setup.tiny else 2**28, device=setup.device)
    target = torch.empty_like(source)
    _peaks["bytes"] = 2 * source.nbytes / setup.seconds(lambda: target.copy_(source))
    yield {"what": "copy", "gigabytes_a_second": _peaks["bytes"] / 1e9}


def training_steps(setup: Setup, *modes: dict[str, bool]) -> Iterator[Row]:
    """One step of each family at full width and the recipes' batch, recorded in a CUDA graph and not."""
    if "bytes" not in _peaks:
        list(peaks(setup))
    on_gpu = setup.device.type == "cuda"
    for mode in modes or ({"cuda_graphs": True}, {"cuda_graphs": False})[: 2 if on_gpu else 1]:
        for key in setup.families:
            yield {"model": key, "batch": setup.batch_size} | mode | _training_step(setup, key, mode)


def _training_step(setup: Setup, key: str, mode: dict[str, bool]) -> Row:
    batch, numbers = setup.batch(key), iter(range(10**6))
    with setup.peak() as memory:
        stepper = setup.stepper(key, **mode)

        def step() -> None:
            stepper.run(batch, next(numbers), 1e-4)

        with contextlib.nullcontext() if mode.get("compile") else FlopCounterMode(display=False) as flops:
            step()
        seconds = setup.seconds(step, rounds=3, calls=2 if setup.tiny else 10)
    stepper.check()
    parameters = sum(value.numel() for value in stepper.model.parameters())
    row = {"milliseconds": 1000 * seconds, "examples_a_second": setup.batch_size / seconds, "parameters": parameters}
    row["over_memory_floor"] = seconds / (BYTES_A_PARAMETER * parameters / _peaks["bytes"])
    if flops is not None:
        row["share_of_peak"] = flops.get_total_flops() / seconds / _peaks["bfloat16"]
    return row | _kernels(setup, step, seconds) | {"peak_gb": memory[0] if memory else None}


def compiled_steps(setup: Setup) -> Iterator[Row]:
    """The same, compiled."""
    yield from training_steps(setup, {"compile": True})


def forward(setup: Setup) -> Iterator[Row]:
    """Windows a second of a BERT's forward pass at inference, and their share of the peak, by windows at once."""
    if "bytes" not in _peaks:
        list(peaks(setup))
    width = sum(setup.spec(FAMILIES[0]).feature_sizes)
    for key in FAMILIES[:2]:
        model = setup.build(key).eval().hold_linear_weights(torch.bfloat16)
        for size in (64,) if setup.tiny else (512, 2048, 8192):
            frames = torch.randn(size, 5, width, device=setup.device)
            counts = torch.full((size,), 5, device=setup.device)
            for compile_ in (False, True)[: 1 if setup.tiny else 2]:
                call = torch.compile(model, dynamic=False) if compile_ else model

                def run(call: Any = call, frames: Any = frames, counts: Any = counts) -> None:
                    with torch.inference_mode(), torch.autocast(setup.device.type, dtype=torch.bfloat16):
                        call(frames, counts)

                if not compile_:
                    with FlopCounterMode(display=False) as flops:
                        run()
                seconds = setup.seconds(run)
                yield {
                    "model": key,
                    "windows": size,
                    "compile": compile_,
                    "windows_a_second": size / seconds,
                    "share_of_peak": flops.get_total_flops() / seconds / _peaks["bfloat16"],
                }


def _kernels(setup: Setup, step: Any, seconds: float) -> Row:
    """Kernels a step (on a CPU operators), and the share of its time in which the device has nothing to do."""
    activity = torch.profiler.ProfilerActivity
    chosen = [activity.CUDA] if setup.device.type == "cuda" else [activity.CPU]
    with torch.profiler.profile(activities=chosen) as profile:
        step()
        setup.wait()
    if setup.device.type != "cuda":
        return {"operators": sum(event.name.startswith("aten::") for event in profile.events() or ())}
    events = [event for event in profile.events() or () if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.device_time_total for event in events) / 1e6
    return {"kernels": len(events), "idle": max(0.0, 1 - busy / seconds)}


def joint_pass(setup: Setup, num_steps: int = 10) -> Iterator[Row]:
    """All nine side by side, stepping in turn, over the sum of what each takes by itself; and their memory."""
    steppers, batches, alone = {}, {}, 0.0
    with setup.peak() as memory:
        for key in setup.models:
            steppers[key], batches[key] = setup.stepper(key), setup.batch(key)
        numbers = iter(range(10**6))
        for key, stepper in steppers.items():

            def one(key: str = key, stepper: Any = stepper) -> None:
                stepper.run(batches[key], next(numbers), 1e-4)

            one()
            alone += setup.seconds(one, rounds=3, calls=num_steps)

        def everyone() -> None:
            for key, stepper in steppers.items():
                stepper.run(batches[key], next(numbers), 1e-4)

        together = setup.seconds(everyone, rounds=3, calls=num_steps)
    for stepper in steppers.values():
        stepper.check()
    yield {
        "models": len(steppers),
        "milliseconds": 1000 * together,
        "over_sum": together / alone,
        "examples_a_second": setup.batch_size / together,
        "peak_gb": memory[0] if memory else None,
    }


def random_videos(count: int, frames: int, width: int) -> MemoryVideos:
    """Videos of random bytes, each the same as the one before from some bytes later: all differ, in a video's room."""
    content = np.random.default_rng(0).integers(0, 256, frames * width + 7 * count, dtype=np.uint8)
    videos = [content[7 * number :][: frames * width].reshape(frames, width) for number in range(count)]
    return MemoryVideos([f"{number:011d}" for number in range(count)], videos)


def prediction(setup: Setup) -> Iterator[Row]:
    """Segments a second of each family at four shifts, ranked; of the first compiled as well.

    Of the segments a class keeps one in 26, as of a test set's 2.6 million a hundred thousand: in lists on the device,
    and the first family's once on the host.
    """
    yield predict(setup, FAMILIES[0], lists="host")
    for key in setup.families:
        yield predict(setup, key)
    if not setup.tiny:
        yield predict(setup, FAMILIES[0], compile_=True)


def predict(setup: Setup, key: str, num_videos: int = 8000, compile_: bool = False, lists: str = "device") -> Row:
    """The same of one model; the first eighth is warm-up."""
    width = sum(setup.spec(key).feature_sizes)
    count, frames = (8, 60) if setup.tiny else (num_videos, 250)
    classes = np.arange(setup.num_rated)
    model = setup.build(key).eval().restrict_classes(torch.from_numpy(classes).to(setup.device))
    model = model.hold_linear_weights(torch.bfloat16)
    for size in (count // 8, count):
        videos: Any = random_videos(size, frames, width)
        index = SegmentIndex.of(videos)
        top_k = max(len(index.segments) // 26, 1)
        batch = 64 if setup.tiny else 8192
        options = ScoringOptions(precision="bfloat16", batch_size=batch, top_k=top_k, compile=compile_)
        best: list[Any] = [
            StreamingTopK(classes, top_k, index.segments)
            if lists == "host"
            else DeviceTopK(classes, top_k, index.segments, setup.device)
            for _ in SHIFTS
        ]
        cells = [CellScores(shift=shift, best=own) for shift, own in zip(SHIFTS, best, strict=True)]
        member = ModelCells(key=key, model=model, cells=cells)
        found = score_videos(videos, index, [member], options, device=setup.device, progress=NullProgress())
        began = time.perf_counter()
        for cell in cells:
            cell.finish()
        finishing = time.perf_counter() - began
    rate = found.num_segments / found.seconds
    return {
        "model": key,
        "compile": compile_,
        "lists": lists,
        "windows_a_second": rate * len(SHIFTS),
        "segments_a_second": rate,
        "finishing_seconds": finishing,
    }


def loader(setup: Setup) -> Iterator[Row]:
    """Examples a second that reading alone gives a training: from memory, from the disk, with reader processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, 2 if setup.tiny else 16, 16 if setup.tiny else 256, 20 if setup.tiny else 200)
        reading = recipe_over(str(folder), 1, 64).data.reading(Cache(folder / "cache"))
        shards = sorted(map(str, folder.glob("train*")))
        size = sum(path.stat().st_size for path in folder.glob("train*"))
        for where, budget, workers in (("memory", 2**34, 0), ("disk", 0, 0), ("disk, 8 processes", 0, 8)):
            if setup.tiny and workers:
                continue
            videos = load_videos(shards, reading, memory_budget=budget)
            dataset = PretrainingDataset(
                videos, num_classes=8, batch_size=setup.batch_size, window_frames=5, shuffle_buffer=512,
                num_workers=workers,
            )  # fmt: skip
            batches = iter(dataset)
            next(batches)
            began, count = time.perf_counter(), 4 if setup.tiny else 400
            for _ in range(count):
                next(batches)
            seconds = time.perf_counter() - began
            yield {"where": where, "examples_a_second": count * setup.batch_size / seconds, "megabytes": size / 1e6}
