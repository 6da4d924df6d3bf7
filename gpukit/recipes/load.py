"""From a word to a model that speaks."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpukit.conversion.checks import check_device, check_plan
from gpukit.events import Report, ignore
from gpukit.generation.loading import load_model
from gpukit.generation.model import Model
from gpukit.recipes.chosen import Word, chosen, listed, located
from gpukit.recipes.references import locate
from gpukit.sources.merged import Chosen, Merge
from gpukit_kernels.devices import Device


def load(
    model: str | Path,
    device: Device = "auto",
    *,
    pre: str | None = None,
    hub: bool = False,
    adapters: Sequence[Word] | str | Path = (),
    strict: bool = False,
    moe_layout: str | None = None,
    report: Report = ignore,
) -> Model:
    """The model on `device` (as for `gpukit.convert`), its weights in blocks as they are stored.

    `model` is a name in the store, a GGUF, a folder from Hugging Face, or an id of the hub
    (hf.co/org/name, or with `hub` org/name). A stored model brings its parameters, system text,
    messages and TEMPLATE, which goes before the chat template of its weights unless the environment
    has OLLAMA_GO_TEMPLATE=0. `pre` names the pre-tokenizer of a folder where none is recognised.

    `adapters` work beside the weights, which stay as they are: each is the path of an adapter of
    PEFT, mlx-lm or llama.cpp, or an id of the hub (hf.co/org/name), as it is, as "DIR:WEIGHT" or as
    (DIR, WEIGHT). Those of a stored model come first; `strict` and `moe_layout` as for
    `gpukit.convert`.
    `ArgumentError` for a device that is not here, NotFoundError for a model that is not there,
    `StoreError` and `HubError` for one that cannot be had, `GGUFError` and `CheckpointError` for
    one that cannot be run, `AdapterError` for an adapter that does not fit the model or has to be
    merged.

        model = gpukit.load("llama3.2:1b")
        print(model.generate("Why is the sky blue?", temperature=0).text)
    """
    check_plan(None, pre)
    check_device(device)
    reference = locate(model, hub=hub)
    adapters = listed(adapters)
    located(adapters)
    found = reference.open(report)
    merge = chosen(adapters, strict=strict, moe_layout=moe_layout, report=report) or Merge(())
    stored = tuple(map(Chosen, found.adapters))
    loaded = load_model(
        found.gguf, device, pre,
        adapters=replace(merge, adapters=(*stored, *merge.adapters)),
        names=(found.name.model,) if found.name else (),
        report=report,
    )  # fmt: skip
    messages = tuple({"role": m.role, "content": m.content} for m in found.messages)
    own = loaded.tokenizer.chat_template is not None and not _prefers_go()
    loaded = replace(loaded, name=str(model))
    return Model(loaded, found.params, found.system, messages, "" if own else found.template)


def _prefers_go() -> bool:
    """Whether TEMPLATE goes before a template of the weights' own, as Ollama has it unless
    OLLAMA_GO_TEMPLATE says no."""
    return os.environ.get("OLLAMA_GO_TEMPLATE", "").strip().lower() not in ("0", "f", "false")
