"""The bundled weights: small, loaded exactly, and drawing digits that another program reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits as handwritten_digits
from sklearn.svm import SVC

from rewriter.models.digits import DIGITS_FOLDER, DigitsPipeline, load_digits

WEIGHTS = DIGITS_FOLDER / "unet" / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pipeline() -> DigitsPipeline:
    loaded = load_digits()
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_the_weights_are_small() -> None:
    assert sum(file.stat().st_size for file in DIGITS_FOLDER.rglob("*") if file.is_file()) < 8_000_000


def test_the_weights_load_without_rounding(pipeline: DigitsPipeline) -> None:
    stored = load_file(WEIGHTS)
    loaded = pipeline.unet.state_dict()
    assert stored.keys() == loaded.keys()
    assert {weight.dtype for weight in stored.values()} == {torch.float16}
    for name, weight in stored.items():
        assert torch.equal(weight.to(torch.float32), loaded[name]), name


def test_drawn_digits_are_read_as_what_was_asked_for(pipeline: DigitsPipeline) -> None:
    data = handwritten_digits()
    reader = SVC(gamma=0.001).fit(data.data, data.target)
    wanted = np.tile(np.arange(10), 6)
    pictures = pipeline(wanted.tolist(), generator=torch.Generator().manual_seed(1234), output_type="np").images
    # Back to the 8x8 pixels of 0 to 16 that the reader has learnt from.
    small = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(small, size=(8, 8), mode="bicubic", antialias=True).clamp(0, 1) * 16
    read = reader.predict(small.reshape(len(wanted), 64).numpy())
    right = read == wanted
    assert right.mean() >= 0.9, dict(zip(wanted[~right].tolist(), read[~right].tolist(), strict=True))
    # Not one picture per digit, drawn over and over.
    for digit in range(10):
        assert np.abs(np.diff(pictures[wanted == digit], axis=0)).max() > 0.2


def test_the_same_seed_draws_the_same_picture(pipeline: DigitsPipeline) -> None:
    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        images = pipeline([3], generator=generator, num_inference_steps=2, output_type="pt").images
        assert isinstance(images, torch.Tensor)
        return images

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_output_types(pipeline: DigitsPipeline) -> None:
    arguments = {"num_inference_steps": 1, "generator": torch.Generator().manual_seed(0)}
    assert pipeline([1, 2], output_type="pt", **arguments).images.shape == (2, 1, 16, 16)
    assert pipeline([1, 2], output_type="np", return_dict=False, **arguments)[0].shape == (2, 16, 16, 1)
    (picture,) = pipeline([7], **arguments).images
    assert picture.size == (16, 16)


def test_bad_arguments_are_refused(pipeline: DigitsPipeline) -> None:
    with pytest.raises(ValueError, match="digits: found 10, expected whole numbers from 0 to 9"):
        pipeline([3, 10])
    with pytest.raises(ValueError, match="output_type: found 'jpeg'"):
        pipeline([3], output_type="jpeg")


def test_a_saved_copy_loads_again(pipeline: DigitsPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    again = load_digits(tmp_path)
    assert torch.equal(next(again.unet.parameters()), next(pipeline.unet.parameters()))
