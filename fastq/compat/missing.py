"""What a submodule says whose library does not import."""

from __future__ import annotations


def missing(submodule: str, package: str, error: ImportError) -> ImportError:
    """The error of a submodule whose library does not import: what to install, and what was wrong."""
    return ImportError(
        f"fastq.compat.{submodule} needs {package}, which does not import here ({type(error).__name__}: {error}); "
        f"install it with: pip install {package}"
    )
