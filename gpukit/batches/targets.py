"""Where results are sent: what `push` of a plan means for a job."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gpukit.batches.document import Place
from gpukit.batches.matching import matches
from gpukit.batches.reading import ReadPlan
from gpukit.errors import ArgumentError, GpukitError
from gpukit.remote.hub import is_id, parse_id
from gpukit.store.names import ModelName

if TYPE_CHECKING:
    from gpukit.batches.schema import Push


def target_of(read: ReadPlan, names: tuple[str, str, str], *, in_store: bool) -> "Push | None":
    """Where the job of these names sends its result: the plan's wish, and over it that of what
    matches; None for nowhere. `ArgumentError`, with the line, for a name that can be none."""
    found = read.plan.push
    place: Place = ("push",)
    for i, rule in enumerate(read.plan.overrides):
        if rule.push is None or not matches(rule.match, *names):
            continue
        place = ("overrides", i, "push")
        if rule.push is False or found is None:
            found = rule.push or None
        else:
            over = {name: getattr(rule.push, name) for name in rule.push.model_fields_set}
            found = found.model_copy(update=over)
    if found is None:
        return None
    if found.to is None:
        raise read.document.fault(place, "'to' is missing in push: hf.co/org/name or the like")
    source, adapter, kind = names
    to = found.to.format(source=source, adapter=adapter.replace("+", "-"), type=kind)
    try:
        _check(to, in_store)
    except GpukitError as error:
        raise read.document.fault((*place, "to"), str(error)) from None
    return found.model_copy(update={"to": to})


def _check(to: str, in_store: bool) -> None:
    if is_id(to):
        parse_id(to)
        return
    if not in_store:
        raise ArgumentError(
            f"{to}: files go to the hub, as hf.co/org/name; for a registry put results into the "
            "store (`store: true`)"
        )
    ModelName.parse(to)


def check_targets(read: ReadPlan, pushes: "Iterable[tuple[Push | None, str]]") -> None:
    """`ArgumentError` for two results, named by what they are here, that go to one place."""
    seen: dict[str, str] = {}
    for push, result in pushes:
        if push is None:
            continue
        key = _key(str(push.to), result)
        if key in seen:
            raise read.document.fault(
                ("push",), f"{push.to}: {seen[key]} and {result} would be sent there; tell them "
                "apart by {source}, {adapter} and {type}",
            )  # fmt: skip
        seen[key] = result


def _key(to: str, result: str) -> str:
    """A name without a file is a folder of files on the hub."""
    if not is_id(to):
        return str(ModelName.parse(to)).lower()
    target = parse_id(to)
    return f"{target.repo}@{target.revision}/{target.file or Path(result).name}".lower()
