"""One JSON document of all that has come so far, and a table of it."""

import json
from typing import Any

from gpucheck.base import Plan
from gpucheck.jobs import jobs, path_of
from gpucheck.steps import steps


def collect(plan: Plan, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts, every step's result, what compiling took, and what was left out."""
    report: dict[str, Any] = {**facts, "steps": {}, "jobs": {}, "left_out": []}
    for step in steps(plan):
        path = step.path(plan)
        if path.exists():
            report["steps"][step.name] = json.loads(path.read_text())
        else:
            report["left_out"].append(step.name)
    for name in jobs(plan):
        if path_of(plan, name).exists():
            report["jobs"][name] = json.loads(path_of(plan, name).read_text())
    noted = plan.at / "copy"
    report["copy_bytes_per_s"] = copy = float(noted.read_text()) if noted.exists() else 0.0
    for step in report["steps"].values() if copy else ():
        for rate in step.get("rates", []):
            rate["share_of_copy"] = rate["gb_per_s"] * 1e9 / copy
    log = plan.at / "cli.log"
    report["cli"] = log.read_text().splitlines() if log.exists() else []
    return report


def text(report: dict[str, Any]) -> str:
    """The report as JSON with a line for each step and job, short enough to be kept."""
    parts = []
    for key, value in report.items():
        if isinstance(value, dict):
            lines = [f"{json.dumps(name)}: {json.dumps(_short(v))}" for name, v in value.items()]
            parts.append(f"{json.dumps(key)}: {{\n" + ",\n".join(lines) + "\n}")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(_short(value))}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _short(value: Any) -> Any:
    """`value` with four digits of each fraction, and without the empty lists in it."""
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items() if v != []}
    if isinstance(value, list):
        return [_short(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def faults(report: dict[str, Any]) -> list[str]:
    """A line for each step that failed and each job that did."""
    lines = []
    for name, step in report["steps"].items():
        if "error" in step:
            lines.append(f"ERROR {name}: {step['error'][:150]}")
        for entry in step.get("wrong", []):
            what = f"{entry['differ']} of {entry['of']} differ" if "differ" in entry else ""
            lines.append(f"WRONG {name}: {entry['kind']} {what or entry.get('share', '')}")
    for name, job in report["jobs"].items():
        if "error" in job:
            lines.append(f"ERROR in job {name}: {job['error'][:150]}")
    return lines


def line(name: str, step: dict[str, Any]) -> str:
    """A step in one line."""
    state = "ERROR" if "error" in step else "wrong" if step.get("wrong") else "ok"
    blocks = f"{step['blocks']} blocks" if "blocks" in step else ""
    if step.get("compiled"):
        blocks += f" compiled {len(step['compiled'])} anew"
    return f"{name:18} {step.get('took_s', 0):6.1f} s {state} {blocks} {step.get('left_out', '')}"


def table(report: dict[str, Any]) -> list[str]:
    """Rates: G weights/s, GB/s, share of a copy and of issue; of products beside torch's bf16."""
    found = []
    for name, step in report["steps"].items():
        for rate in step.get("rates", []):
            more = f" {100 * rate['share_of_issue']:4.0f}%i" if "share_of_issue" in rate else ""
            if "torch_bf16_seconds" in rate:
                beside = rate["torch_bf16_seconds"] / rate["seconds"]
                more = f" {rate['tflops']:6.1f} TF, bf16 x{beside:.2f}"
            found.append(
                f"{name.split()[0]:7} {rate['what']:15} {rate['seconds'] * 1e3:8.3f} ms "
                f"{rate['weights_per_s'] / 1e9:7.1f} Gw/s {rate['gb_per_s']:6.0f} GB/s "
                f"{100 * rate['share_of_copy']:4.0f}%{more}"
            )
        for model in step.get("models", []):
            found.append(
                f"{name}: {model['what']} tokens {model['seconds'] * 1e3:.1f} ms, "
                f"{model['tokens_per_s']:.0f} tokens/s, {model['tflops']:.0f} TFLOP/s"
            )
        for run in step.get("runs", []):
            found.append(
                f"{name}: {run['seconds']:.2f} s, {run['gb_per_s']:.2f} GB/s read, "
                f"copy {step['copy_seconds']:.2f} s"
            )
    return found
