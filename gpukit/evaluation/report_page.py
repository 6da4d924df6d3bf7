"""The page of a report: one HTML file that asks nobody for anything, made of its document alone.

`pages` keeps what is in it of models and texts from acting.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpukit.evaluation.pages import NONE, as_script, number, percent, rendered, visible
from gpukit.evaluation.report_plot import Point, in_bytes, size_plot

TEMPLATE = Path(__file__).with_name("report_page.html")
# Shades of a map of errors.
SHADES = 7


def page(document: Mapping[str, Any]) -> str:
    """The page of what `gpukit.evaluation.report.document` gives."""
    models: Sequence[Mapping[str, Any]] = document["models"]
    maps = error_maps(models)
    return rendered(
        TEMPLATE,
        title=models[0]["model"],
        build=document["build"],
        facts=[(n, NONE if v is None else v) for n, v in document["facts"].items()],
        models=[(model, _row(model, n in document["pareto"])) for n, model in enumerate(models)],
        beside=any("kld" in model for model in models),
        plot=_plot(document),
        maps=maps["maps"],
        shades=maps["shades"],
        most=_most(models)["model"],
        worst=[model for model in models if model["worst"] and "kld" in model]
        or [model for model in models if model["worst"]],
        number=number,
        percent=percent,
        data=as_script(document),
    )


def _row(model: Mapping[str, Any], best: bool) -> dict[str, Any]:
    """The cells of a model's row, values and errors."""
    speed = model["tokens_per_second"]

    def pair(key: str, places: int, sign: str = "") -> tuple[str, str]:
        error = model.get(f"{key}_error")
        return number(model.get(key), places, sign), "" if error is None else number(error, places)

    def share(key: str, sign: str = "") -> tuple[str, str]:
        error = model.get(f"{key}_error")
        return percent(model.get(key), 2, sign), "" if error is None else percent(error)

    return {
        "best": best and "kld" in model,
        "cells": [
            (in_bytes(model["size"]), ""),
            (number(model["bits_per_weight"], 2), ""),
            (number(model["perplexity"]), number(model["error"])),
            pair("difference", 4, "+"),
            pair("kld", 6),
            *((number(model.get(f"kld_{end}")), "") for end in ("median", "99", "999", "max")),
            share("dp", "+"),
            share("dp_rms"),
            share("same_top"),
            (NONE if speed is None else number(speed, 0), ""),
        ],
    }


def _plot(document: Mapping[str, Any]) -> Any:
    models = document["models"]
    beside = [
        (n, each) for n, each in enumerate(models) if isinstance(each.get("kld"), int | float)
    ]
    if not beside:
        return None
    base = [each["size"] for each in models if "kld" not in each]
    points = [
        Point(
            _label(each, [other for _, other in beside]),
            each["size"],
            each["kld"],
            each["kld_error"] if isinstance(each["kld_error"], int | float) else 0.0,
            n in document["pareto"],
        )
        for n, each in beside
    ]
    return size_plot(points, base[0] if base else None)


def _label(model: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """Its type where that tells it from `others`, else the end of its name."""
    if sum(each["type"] == model["type"] for each in others) == 1:
        return visible(str(model["type"]))
    name = Path(str(model["model"])).name.removesuffix(".gguf")
    return visible(name if len(name) <= 16 else f"…{name[-15:]}")


def _most(models: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The model that lost most, the last of those without a divergence."""
    losses = [each.get("kld", 0.0) for each in models]
    known = [loss if isinstance(loss, int | float) else math.inf for loss in losses]
    return models[max(range(len(models)), key=lambda n: (known[n], n))]


def error_maps(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each model that has them its tensors' errors as a table, layers down and classes across;
    shades are the same in all of them, `shades` tells the largest error of each."""
    shown = [model for model in models if model["tensors"]]
    values = [t["error"] for model in shown for t in model["tensors"] if _is_positive(t["error"])]
    if not values:
        return {"maps": [], "shades": []}
    low, high = math.log(min(values)), math.log(max(values))
    width = (high - low) / SHADES
    ends = [math.exp(low + (n + 1) * width) for n in range(SHADES)]

    def shade(value: Any) -> int:
        if not _is_positive(value):
            return 0 if value == 0 else SHADES - 1
        return min(int((math.log(value) - low) / width), SHADES - 1) if width else 0

    return {
        "maps": [_map(model, shade) for model in shown],
        "shades": [(n, digits(end)) for n, end in enumerate(ends)] if width else [],
    }


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def _map(model: Mapping[str, Any], shade: Any) -> dict[str, Any]:
    tensors = model["tensors"]
    classes = list(dict.fromkeys(t["class"] for t in tensors if t["layer"] is not None))
    at = {(t["layer"], t["class"]): t for t in tensors if t["layer"] is not None}

    def cell(tensor: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if tensor is None:
            return None
        weighted = tensor["weighted_error"]
        return {
            "shade": shade(tensor["error"]),
            "value": digits(tensor["error"]),
            "type": tensor["type"],
            "weighted": None if weighted is None else digits(weighted),
        }

    return {
        "model": model["model"],
        "type": model["type"],
        "classes": classes,
        "rows": [
            (layer, [cell(at.get((layer, each))) for each in classes])
            for layer in sorted({layer for layer, _ in at})
        ],
        "others": [(t["class"], cell(t)) for t in tensors if t["layer"] is None],
        "weighted": any(t["weighted_error"] is not None for t in tensors),
    }


def digits(value: Any) -> str:
    """A share in percent, with two digits that count."""
    if isinstance(value, str):
        return number(value)
    share = 100 * value
    if share == 0:
        return "0"
    places = max(1 - math.floor(math.log10(abs(share))), 0)
    return f"{share:.{places}f}" if places <= 4 else f"{share:.1e}"
