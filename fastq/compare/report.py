"""What came out: the claims' verdicts as data, as a table, as a picture."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from .claims import CLAIMS, EVERY_RECIPE, RECONSTRUCTED, Contrast
from .identities import Identity
from .units import Budget

__all__ = ["SCHEMA", "picture", "shown", "summary", "tables", "verdict"]

SCHEMA = 1


def verdict(lower: int, seeds: int) -> str:
    """A claim shows where every seed has its sign: by chance alone that happens once in ``2**seeds``, 1 in 32 with five."""
    if lower == seeds:
        return "shows"
    return "does not show, the opposite does" if lower == 0 else "does not show"


def _compared(contrast: Contrast, results: list[dict[str, Any]]) -> dict[str, Any]:
    """A contrast, seed by seed. Where training diverged (None) nothing is lower; where both have the same value, neither is."""
    by_arm = {arm: [r["metrics"] for r in results if r["arm"] == arm] for arm in (contrast.arm, contrast.other)}
    ours = [m[contrast.metric] for m in by_arm[contrast.arm]]
    theirs = [m[contrast.reference] for m in by_arm[contrast.other]]
    differences = [a - b for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    lower, higher = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
    word = verdict(lower, len(ours)) if lower or higher == len(ours) else "does not show"
    word = word if contrast.claimed else "not claimed"
    return {
        "text": contrast.text, "arm": contrast.arm, "metric": contrast.metric, "other": contrast.other,
        "other metric": contrast.reference, "values": ours, "other values": theirs, "lower": lower, "verdict": word,
        "difference": statistics.mean(differences) if differences else None,
        "spread": statistics.stdev(differences) if len(differences) > 1 else None,
    }  # fmt: skip


def _repeated(again: dict[str, Any], first: dict[str, Any]) -> Identity:
    """Equal codes and equal numbers, or not."""
    differs = again["codes"] != first["codes"] or again["metrics"] != first["metrics"]
    return Identity(f"the same seed gives the same codes: {again['claim']}, {again['arm']}", float(differs), 0.0)


def summary(results: list[dict[str, Any]], budget: Budget, checked: list[Identity], quick: bool) -> dict[str, Any]:
    """All of it, as it is written to JSON."""
    claims = []
    for claim in CLAIMS.values():
        own = [r for r in results if r["claim"] == claim.name and not r["repeat"]]
        claims.append({
            "name": claim.name, "statement": claim.statement, "paper": claim.paper, "network": claim.network,
            "reconstruction": claim.reconstruction,
            "arms": {arm: [r["metrics"] for r in own if r["arm"] == arm] for arm in claim.arms},
            "contrasts": [_compared(contrast, own) for contrast in claim.contrasts],
        })  # fmt: skip
    first = {(r["claim"], r["arm"], r["seed"]): r for r in results if not r["repeat"]}
    again = [(r, first[r["claim"], r["arm"], r["seed"]]) for r in results if r["repeat"]]
    return {
        "schema": SCHEMA, "quick": quick, "seeds": budget.seeds, "steps": budget.steps, "pretraining": budget.pretraining,
        "cpu seconds": round(sum(r["seconds"] for r in results), 1),
        "claims": claims,
        "recipes": {r["arm"]: r["metrics"] for r in results if r["claim"] == EVERY_RECIPE.name},
        "reconstructions": RECONSTRUCTED,
        "identities": [
            {"name": i.name, "error": i.error if math.isfinite(i.error) else None, "tolerance": i.tolerance, "holds": i.holds}
            for i in [*checked, *(_repeated(a, b) for a, b in again)]
        ],
    }  # fmt: skip


def number(value: float | None) -> str:
    """Three digits."""
    return "not finite" if value is None else f"{value:.3g}"


def mean(values: list[float | None]) -> float | None:
    """None where any run diverged."""
    found = [v for v in values if v is not None]
    return statistics.mean(found) if len(found) == len(values) else None


def title(claim: dict[str, Any]) -> str:
    """The name of a claim, and what of its method is a reconstruction."""
    return f"{claim['name']} ({claim['reconstruction']})" if claim["reconstruction"] else str(claim["name"])


def recipe_title(result: dict[str, Any], name: str) -> str:
    """The same of a recipe."""
    mark = result["reconstructions"].get(name)
    return f"{name} ({mark})" if mark else name


def rows(claim: dict[str, Any], seeds: int) -> list[tuple[str, ...]]:
    """Of the table: what, the two arms, their means, the difference with its spread, seeds, verdict."""
    found: list[tuple[str, ...]] = []
    for c in claim["contrasts"]:
        pair = f"{c['arm']} / {c['other']}" if c["arm"] != c["other"] else c["arm"]
        spread = "" if c["spread"] is None else f" ± {number(c['spread'])}"
        means = number(mean(c["values"])), number(mean(c["other values"]))
        found.append((c["text"], pair, *means, f"{number(c['difference'])}{spread}", f"{c['lower']}/{seeds}", c["verdict"]))
    return found


HEADINGS = ("should be lower", "arms", "first", "second", "difference", "seeds", "verdict")


def tables(result: dict[str, Any]) -> list[Any]:
    """For rich: the claims, the recipes, the identities."""
    from rich.table import Table

    steps, seeds = result["steps"], result["seeds"]
    found = []
    for claim in result["claims"]:
        paper = f"; arXiv {claim['paper']}" if claim["paper"] else ""
        heading = f"{title(claim)}: {claim['statement']}\n{claim['network']} network, {steps} steps, {seeds} seeds{paper}"
        table = Table(title=heading, title_justify="left", min_width=130)
        for column in HEADINGS:
            table.add_column(column, justify="right" if column in ("first", "second", "difference", "seeds") else "left")
        for row in rows(claim, seeds):
            table.add_row(*row[:-1], f"[{'green' if row[-1] == 'shows' else 'yellow'}]{row[-1]}")
        found.append(table)
    recipes = Table(title="All recipes once at W2A2, residual network")
    for column in ("recipe", "training loss", "test loss", "accuracy"):
        recipes.add_column(column, justify="left" if column == "recipe" else "right")
    for name, m in result["recipes"].items():
        recipes.add_row(recipe_title(result, name), number(m["training loss"]), number(m["test loss"]), f"{m['accuracy']:.1%}")
    checked = Table(title="Identities")
    for column in ("identity", "error", "tolerance", ""):
        checked.add_column(column, justify="right" if column in ("error", "tolerance") else "left")
    for i in result["identities"]:
        word = "[green]holds[/green]" if i["holds"] else "[red]does not hold[/red]"
        checked.add_row(i["name"], number(i["error"]), number(i["tolerance"]), word)
    return [*found, recipes, checked]


def shown(result: dict[str, Any]) -> str:
    """How many of what the papers claim shows here."""
    words = [c["verdict"] for claim in result["claims"] for c in claim["contrasts"] if c["verdict"] != "not claimed"]
    return f"{words.count('shows')} of {len(words)} comparisons show"


#: Powers of two at which a picture's axis ends; what lies beyond stands at the edge.
EDGE = 6
COLORS = {"shows": "tab:green", "does not show": "tab:gray", "not claimed": "tab:blue"}


def _ratio(power: float) -> str:
    """``2**power`` as people say it."""
    if power != int(power):
        return f"{2**power:.2f}"
    sign = "≥" if power == EDGE else "≤" if power == -EDGE else ""
    return f"{sign}{2 ** int(power)}" if power >= 0 else f"{sign}1/{2 ** int(-power)}"


def picture(result: dict[str, Any], path: Path) -> None:
    """A panel for each claim: for each contrast, the seeds' ratios of the two arms; left of 1 is what the paper says."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(4, 2, figsize=(15, 16), layout="constrained")
    for axis, claim in zip(axes.flat, result["claims"], strict=False):
        names, reach = [], 0.5
        for place, c in enumerate(reversed(claim["contrasts"])):
            color = COLORS.get(c["verdict"], "tab:red")
            names.append(c["text"])
            pairs = [(a, b) for a, b in zip(c["values"], c["other values"], strict=True) if a is not None and b]
            ratios = [max(-EDGE, min(EDGE, math.log2(a / b))) if a else -EDGE for a, b in pairs]
            reach = max([reach, *map(abs, ratios)])
            axis.plot(ratios, [place] * len(ratios), "o", color=color, alpha=0.7, markersize=7)
            count = f"{c['lower']}/{result['seeds']}"
            axis.annotate(count, (1.01, place), xycoords=("axes fraction", "data"), va="center", color=color)
        axis.axvline(0, color="black", linewidth=1)
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.set_xlim(-1.08 * reach, 1.08 * reach)
        whole = range(-EDGE, EDGE + 1, 2 if reach > 3 else 1)
        ticks = [t for t in whole if abs(t) <= reach] if reach >= 1 else [-0.5, -0.25, 0, 0.25, 0.5]
        axis.set_xticks(ticks, [_ratio(t) for t in ticks])
        axis.grid(axis="x", alpha=0.3)
        axis.set_title(f"{title(claim)}, {claim['network']} network", fontsize=11)
        axis.set_xlabel("ratio of the arms, one dot a seed")
    axis = axes.flat[len(result["claims"])]
    names = [recipe_title(result, name) for name in result["recipes"]]
    losses = [m["test loss"] for m in result["recipes"].values()]
    drawn = axis.barh(names, [loss or 0.0 for loss in losses], color="tab:blue")
    axis.bar_label(drawn, [f" {m['accuracy']:.1%}" for m in result["recipes"].values()])
    axis.tick_params(axis="y", labelsize=8)
    axis.invert_yaxis()
    axis.set(title="All recipes once at W2A2, residual network", xlabel="test loss (and test accuracy)")
    axis.set_xlim(0, 1.15 * max([loss or 0.0 for loss in losses] or [1.0]))
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"The papers' claims on digits: {shown(result)} (left of 1 in every one of {result['seeds']} seeds: green; in none: red; "
        "not claimed: blue)", fontsize=13,
    )  # fmt: skip
    figure.savefig(path, dpi=110)
    plt.close(figure)
