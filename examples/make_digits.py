"""Trains the network that ``digits.py`` runs, and writes it beside this file with some images: needs torch and scikit-learn.

    python examples/make_digits.py

``digits.safetensors``: a residual network with 4-bit weights and activations, trained from the full-precision one that is trained
first. ``digits.npz``: ``images`` uint8 ``(450, 1, 8, 8)``, 0 to 16, none of which it was trained with; their ``labels``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import fastq
from fastq.demo import Digits, images, predictions, prepared, recipe_for, train

HERE = Path(__file__).parent


def main() -> None:
    torch.manual_seed(0)
    data = images(torch.device("cpu"))
    network = Digits()
    train(network, data, 12, 3e-3, 0, lambda: None)
    recipe = recipe_for("lsq", 4)
    quantized, _, _ = prepared(network, recipe, "integer")
    train(quantized, data, 12, 2e-3, 0, lambda: None, recipe)
    integers = fastq.convert(quantized.eval())
    size = fastq.save(integers, HERE / "digits.safetensors")
    x, labels = data[2:]
    np.savez_compressed(HERE / "digits.npz", images=(x * 16).numpy().astype(np.uint8), labels=labels.numpy().astype(np.uint8))
    print(f"{size} bytes, accuracy {float((predictions(integers, x) == labels).float().mean()):.2%}")


if __name__ == "__main__":
    main()
