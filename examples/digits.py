"""Classifies handwritten digits with a saved network of 4-bit integers: needs NumPy and fastq, and no torch.

    python examples/digits.py

From the shell: ``python -m fastq predict examples/digits.safetensors examples/digits.npz --array images --scale 1/16``.
``make_digits.py`` trained and saved the network.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import fastq

HERE = Path(__file__).parent


def main() -> None:
    network = fastq.runtime.load(HERE / "digits.safetensors")
    digits = np.load(HERE / "digits.npz")
    images = digits["images"].astype(np.float32) / 16
    logits = network(images)
    classes = logits.argmax(1)

    for image, found, label in zip(digits["images"][:3, 0], classes[:3], digits["labels"][:3], strict=True):
        print("\n".join("".join(" .:-=+*#%"[int(pixel) // 2] * 2 for pixel in row) for row in image))
        print(f"is a {label}, and the network says {found}\n")
    correct = int((classes == digits["labels"]).sum())
    print(f"{network}: {correct} of {len(classes)} right; torch was {'' if 'torch' in sys.modules else 'not '}imported")


if __name__ == "__main__":
    main()
