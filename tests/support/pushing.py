"""Batches whose results are sent by several processes, to a registry on this machine."""

from pathlib import Path
from typing import Any

from support import registry

import gpukit
from gpukit.batches.summary_page import page

BY_TWO = """
sources: [plain, tied]
types: [Q8_0, F16]
store: me/
options: {{device: cpu}}
push: {{to: "{}/me/{{source}}:{{type}}", insecure: true}}
"""
FOUR = {f"me/{source}:{kind}" for source in ("plain", "tied") for kind in ("Q8_0", "F16")}


def check_pushes(plan: Path, server: registry.Server, **how: Any) -> None:
    """Each result of `plan` is sent once by whoever makes it; one that was refused is sent alone by
    the next batch, and the table and the page say so."""
    server.faults["PUT manifests"] = [registry.Fault(status=403)]
    made = gpukit.batch(plan, keep_going=True, **how)
    assert sorted(_states(made)) == [("done", "done")] * 3 + [("failed", "failed")]
    assert [row.made for row in made.rows] == [True] * 4
    (refused,) = made.failed
    assert f"not pushed to {server.host}/me/{refused.source}:" in refused.why
    assert "\n" not in refused.why
    assert len(server.manifests) == 3
    assert server.count("PUT", "/manifests/") == 4
    again = gpukit.batch(plan, **how)
    assert _states(again) == [("done", "done")] * 4
    assert [row.made for row in again.rows] == [False] * 4
    assert set(server.manifests) == FOUR
    assert server.count("PUT", "/manifests/") == 5
    for told in (again, gpukit.batch_status(plan)):
        assert [row.push["to"] for row in told.rows if row.push] == [
            f"{server.host}/me/{source}:{kind}" for source in ("plain", "tied")
            for kind in ("Q8_0", "F16")
        ]  # fmt: skip
    asked = len(server.asked)
    assert _states(gpukit.batch(plan, **how)) == [("done", "done")] * 4
    assert len(server.asked) == asked
    shown = page(again.as_json())
    assert ">4 done<" in shown
    assert f"done, pushed to {server.host}/me/plain:Q8_0" in shown


def _states(result: gpukit.BatchResult) -> list[tuple[str, str]]:
    return [(str(row.state), (row.push or {"state": "none"})["state"]) for row in result.rows]
