"""From a word to a model that speaks."""

from pathlib import Path

from gpukit.conversion.checks import check_device, check_plan
from gpukit.events import Report, Warned, ignore
from gpukit.generation.generate import load_model
from gpukit.generation.model import Model
from gpukit.recipes.references import locate


def load(
    model: str | Path,
    device: str = "auto",
    *,
    pre: str | None = None,
    hub: bool = False,
    report: Report = ignore,
) -> Model:
    """The model on `device` (auto, cpu, cuda or cuda:N), its weights in blocks as they are stored.

    `model` is a name in the store, a GGUF, a folder from Hugging Face, or an id of the hub
    (hf.co/org/name, or with `hub` org/name). A stored model brings its parameters, system text and
    messages. `pre` names the pre-tokenizer of a folder where none is recognised.
    `ArgumentError` for a device that is not here, NotFoundError for a model that is not there,
    `StoreError` and `HubError` for one that cannot be had, `GGUFError` and `CheckpointError` for
    one that cannot be run.

        model = gpukit.load("llama3.2:1b")
        print(model.generate("Why is the sky blue?", temperature=0).text)
    """
    check_plan(None, pre)
    check_device(device)
    found = locate(model, hub=hub).open(report)
    loaded = load_model(found.gguf, device, pre)
    if found.template and loaded.tokenizer.chat_template is None:
        report(Warned("TEMPLATE is in Go's syntax and is not used; the prompt goes in bare"))
    messages = tuple({"role": m.role, "content": m.content} for m in found.messages)
    return Model(loaded, found.params, found.system, messages)
