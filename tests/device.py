"""The device and the backend under test."""

import os

DEVICE = os.environ.get("FASTQ_TEST_DEVICE", "cpu")
BACKEND = os.environ.get("FASTQ_BACKEND") or {"cpu": "cpu", "cuda": "cuda"}[DEVICE]
