"""How well models expect a text, and what quantising them cost."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gpukit_kernels as kernels
from gpukit.evaluation.divergence import Divergence
from gpukit.evaluation.journal import Journal
from gpukit.evaluation.measuring import Measurement, measure, stage
from gpukit.evaluation.perplexity import Mean, perplexity as perplexity_of
from gpukit.evaluation.scoring import Scores
from gpukit.evaluation.subjects import Subject
from gpukit.evaluation.windows import Windows
from gpukit.events import Report, Status, ignore
from gpukit.formats.file_types import listed_types
from gpukit.given import list_of
from gpukit.recipes.asked import Asked
from gpukit.recipes.chosen import Word
from gpukit.recipes.measured import opened
from gpukit.recipes.reporting import ReportWriter
from gpukit.recipes.shared_reference import SharedReference, SubjectReference
from gpukit_kernels.devices import Device

# Of what is in a journal: another form gets another number.
JOURNAL = "1"


@dataclass(frozen=True)
class Perplexity:
    """How well a model expects a text, and, with a reference, how far its expectations are from the
    reference's.

    perplexity, error   exp of the mean of -ln p over the scored tokens, and its standard error
    chunks, tokens      windows of `num_ctx` tokens, and how many tokens were scored in all
    running             the perplexity of all windows up to and with each
    nbytes              of the model's tensors
    tokens_per_second   how fast tokens went through the model; None where a journal knew all
    against             the reference; divergence: what there is to say beside it
    scores              of every token: -ln p, and beside a reference -ln p of that, the divergence
                        and whether both expect the same
    """

    model: str
    type: str
    nbytes: int
    bits_per_weight: float
    perplexity: float
    error: float
    chunks: int
    tokens: int
    num_ctx: int
    stride: int | None
    device: Device
    text_sha256: str | None
    tokens_per_second: float | None
    running: tuple[float, ...] = field(repr=False)
    scores: Scores = field(repr=False, compare=False)
    against: str | None = None
    divergence: Divergence | None = None

    def as_json(self) -> dict[str, Any]:
        """The numbers as one JSON-ready document; sizes in bytes, shares from 0 to 1."""
        found = {
            "model": self.model,
            "type": self.type,
            "size": self.nbytes,
            "bits_per_weight": self.bits_per_weight,
            "perplexity": self.perplexity,
            "error": self.error,
            "chunks": self.chunks,
            "tokens": self.tokens,
            "num_ctx": self.num_ctx,
            "stride": self.stride,
            "device": self.device,
            "text_sha256": self.text_sha256,
            "tokens_per_second": self.tokens_per_second,
            "running": list(self.running),
        }
        if self.divergence is not None:
            found |= {"against": self.against, **self.divergence.as_json()}
        return found


def perplexity(
    model: str | Path,
    text: str | Path | None,
    *,
    num_ctx: int | None = None,
    chunks: int | None = None,
    stride: int | None = None,
    against: str | Path | None = None,
    adapters: Sequence[Word] | str | Path = (),
    strict: bool = False,
    moe_layout: str | None = None,
    save_logits: str | Path | None = None,
    save_report: str | Path | None = None,
    journal: str | Path | None = None,
    pre: str | None = None,
    hub: bool = False,
    device: Device = "auto",
    report: Report = ignore,
) -> Perplexity:
    """How well `model` expects `text`, as llama-perplexity counts it; with `against` beside that
    model, or beside a logits file of llama-perplexity.

    `text` is the text itself, or, as a `Path`, a file of it; None takes that of the logits file.
    It is cut into windows of `num_ctx` tokens (512), at most `chunks` of them, and the second half
    of each is scored; with `stride` windows begin every so many tokens, and only the last `stride`
    of each are scored. `adapters` work beside the weights of `model`, not of `against`;
    `save_logits` writes a logits file, `save_report` a page with all of it, `journal` is a file
    that a killed run goes on from. The other arguments are as for `gpukit.load`, `hub` is of
    `model` alone; `report` hears a `Step` of every window.
    `ArgumentError` for what cannot be asked for, a text shorter than two windows, and a model with
    another vocabulary than `against`; `FormatError` for a logits file or a journal that is none;
    `CheckpointError` for a model whose logits are no numbers; NotFoundError and the errors of
    loading for models that are not there or cannot be run; `DiskError` where the disk refuses.

        gpukit.perplexity("llama-q4.gguf", Path("wiki.test.raw"), against="llama-f16.gguf")
    """
    asked = Asked(
        (model,), text, (), num_ctx=num_ctx, chunks=chunks, stride=stride, against=against,
        adapters=adapters, strict=strict, moe_layout=moe_layout, save_logits=save_logits,
        save_report=save_report, journal=journal, pre=pre, hub=hub, device=device,
    )  # fmt: skip
    (found,) = measured(asked, report)
    return found


def perplexities(
    models: Sequence[str | Path],
    text: str | Path | None,
    *,
    types: Sequence[str] = (),
    imatrix: str | Path | None = None,
    num_ctx: int | None = None,
    chunks: int | None = None,
    stride: int | None = None,
    against: str | Path | None = None,
    adapters: Sequence[Word] | str | Path = (),
    strict: bool = False,
    moe_layout: str | None = None,
    save_report: str | Path | None = None,
    journal: str | Path | None = None,
    pre: str | None = None,
    hub: bool = False,
    device: Device = "auto",
    report: Report = ignore,
) -> tuple[Perplexity, ...]:
    """`perplexity` of several models, one by one, each beside `against`, else beside the first.

    With `types` there is one model, and what it becomes as each file type follows it: quantised in
    memory, with importance from the file `imatrix`, `adapters` merged before. Arguments and errors
    as `perplexity`, and those of `gpukit.quantize`.

        [row.divergence for row in gpukit.perplexities(["llama-f16.gguf"], text, types=["Q4_K_M"])]
    """
    named = list_of(models, "models: a list such as ['llama-q4.gguf']")
    asked = Asked(
        named, text, listed_types(types), imatrix=imatrix, num_ctx=num_ctx, chunks=chunks,
        stride=stride, against=against, adapters=adapters, strict=strict, moe_layout=moe_layout,
        save_report=save_report, journal=journal, pre=pre, hub=hub, device=device,
    )  # fmt: skip
    return measured(asked, report)


def measured(
    asked: Asked, report: Report, shared: SharedReference | None = None
) -> tuple[Perplexity, ...]:
    """What `asked` asks for; arguments and errors as `perplexities`. `shared` keeps the reference
    for the next that is asked for."""
    with ExitStack() as stack:
        ready = opened(asked, stack, report)
        journal = None
        if asked.journal is not None:
            journal = stack.enter_context(Journal(Path(asked.journal), JOURNAL, ready.fingerprint))
        page = ReportWriter(asked, ready, report) if asked.save_report is not None else None
        found: list[Perplexity] = []
        # The first model stands beside itself in every pair: it is not run alone before them.
        alone = ready.base is not None and ready.base is ready.subjects[0]
        models = len(ready.subjects) - alone
        if shared is not None:
            reference = shared.of(ready, asked, report)
        else:
            reference = SubjectReference(
                ready.base, ready.base_windows, asked.device, report, models
            )
        for number, subject in enumerate(ready.subjects):
            if alone and number == 0:
                continue
            report(Status(stage(subject.name)))
            heed = page.heed(number) if page else None
            measured = measure(
                partial(subject.load, asked.device, report, heed),
                ready.windows[number], subject.name,
                base=reference.open if ready.base is not None else None,
                journal=journal, part=str(number), report=report,
                save=Path(asked.save_logits) if asked.save_logits else None,
            )  # fmt: skip
            if alone and not found:
                found.append(_row(ready.subjects[0], asked, ready.text_sha256, ready.windows[0],
                                  reference.measured(measured), None))  # fmt: skip
            found.append(_row(subject, asked, ready.text_sha256, ready.windows[number],
                              measured, reference.name))  # fmt: skip
        if page is not None:
            page.write([row.as_json() for row in found], [row.scores for row in found])
    return tuple(found)


def _row(
    subject: Subject,
    asked: Asked,
    text_sha256: str | None,
    windows: Windows,
    found: Measurement,
    against: str | None,
) -> Perplexity:
    value: Mean = perplexity_of(found.scores.nll)
    beside = found.scores.nll_base is not None
    return Perplexity(
        model=subject.name,
        type=subject.type,
        nbytes=subject.nbytes,
        bits_per_weight=subject.bits_per_weight,
        perplexity=value.value,
        error=value.error,
        chunks=len(windows),
        tokens=len(found.scores),
        num_ctx=windows.num_ctx,
        stride=asked.stride,
        device=",".join(map(str, kernels.device_list(asked.device))),
        text_sha256=text_sha256,
        tokens_per_second=found.tokens_per_second,
        running=found.running,
        scores=found.scores,
        against=against if beside else None,
        divergence=Divergence.of(found.scores) if beside else None,
    )
