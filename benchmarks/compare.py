"""``python -m benchmarks.compare``: what ``python -m fastq compare`` found becomes a committed result; README's block of it.

``make compare`` runs the two. The result has the machine, the versions and the commit beside the numbers, and its picture; a
quick run is refused.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from . import results

__all__ = ["block", "keep", "main"]


def keep(output: Path, folder: Path = results.FOLDER) -> Path:
    """Take ``compare.json`` and ``compare.png`` of a whole run in ``output`` into ``folder``."""
    try:
        comparison = json.loads((output / "compare.json").read_text())
    except (OSError, ValueError) as error:
        raise results.BrokenResult(f"{output / 'compare.json'}: {error}") from None
    result = results.validate(results.new("comparison", "compare", comparison=comparison))
    if comparison["quick"]:
        raise results.BrokenResult(f"{output / 'compare.json'}: a quick run says nothing of the claims")
    written = results.write(result, folder)
    shutil.copyfile(output / "compare.png", written.with_suffix(".png"))
    return written


def number(value: float | None) -> str:
    """Three digits."""
    return "not finite" if value is None else f"{value:.3g}"


def _mean(values: list[float | None]) -> float | None:
    found = [v for v in values if v is not None]
    return sum(found) / len(found) if len(found) == len(values) else None


def block(result: dict[str, Any], image: str = "") -> str:
    """A committed comparison as Markdown."""
    found, where = result["comparison"], result["environment"]
    claims = [c for claim in found["claims"] for c in claim["contrasts"] if c["verdict"] != "not claimed"]
    shown = sum(c["verdict"] == "shows" for c in claims)
    held = sum(i["holds"] for i in found["identities"])
    commit = (where["commit"] or "unknown")[:12] + (" (changed)" if where["dirty"] else "")
    head = (
        f"{where['cpu']}; torch {where['torch']}; commit {commit}; {result['created'][:10]}. {found['steps']} steps for every arm, "
        f"{found['seeds']} seeds, the same start and order of images for the arms of a seed.\n\n{shown} of {len(claims)} "
        f"comparisons show: lower in every seed, which chance does once in {2 ** found['seeds']}. Identities that hold: {held} of "
        f"{len(found['identities'])}. Digits are easy: what does not show here may show on harder data."
    )
    rows = ["| claim | should be lower | arms | first | second | difference | seeds | |", "|---|---|---|---:|---:|---:|---:|---|"]
    for claim in found["claims"]:
        name = claim["name"] + (f" ({claim['reconstruction']})" if claim["reconstruction"] else "")
        for i, c in enumerate(claim["contrasts"]):
            pair = f"{c['arm']} / {c['other']}" if c["arm"] != c["other"] else c["arm"]
            spread = "" if c["spread"] is None else f" ± {number(c['spread'])}"
            cells = [
                "" if i else f"{name}: {claim['statement']}", c["text"].replace("|", "\\|"), pair, number(_mean(c["values"])),
                number(_mean(c["other values"])), f"{number(c['difference'])}{spread}", f"{c['lower']}/{found['seeds']}",
                f"**{c['verdict']}**" if c["verdict"] == "shows" else c["verdict"],
            ]  # fmt: skip
            rows.append("| " + " | ".join(cells) + " |")
    recipes = ["| all recipes once at W2A2 | training loss | test loss | accuracy |", "|---|---:|---:|---:|"]
    for name, m in found["recipes"].items():
        mark = found["reconstructions"].get(name)
        name = f"{name} ({mark})" if mark else name
        recipes.append(f"| {name} | {number(m['training loss'])} | {number(m['test loss'])} | {m['accuracy']:.1%} |")
    plot = [f"![compare]({image})"] if image else []
    return "\n\n".join([head, "\n".join(rows), "\n".join(recipes), *plot])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, nargs="?", default=Path("compare_output"), help="of `python -m fastq compare`")
    args = parser.parse_args(arguments)
    try:
        print(f"results: {keep(args.output)}")
    except results.BrokenResult as error:
        print(f"benchmarks.compare: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
