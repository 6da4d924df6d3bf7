"""Steps between what a checkpoint stores and the layout of a GGUF."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import checkpoints, zoo_build
from support.slabs import tensors

# More than 8 bits of mantissa hold: rows that were rounded on the way would differ.
STEP = 2.0**-9


def by_row(name: str, row: int, rows: torch.Tensor) -> torch.Tensor:
    """`rows` + STEP times the number of the row, from 1, in all tensors but norms."""
    if "norm" in name:
        return rows
    numbers = torch.arange(row + 1, row + 1 + len(rows), dtype=torch.float32)
    return rows.to(torch.float32) + STEP * numbers[:, None]


def twice(_name: str, _row: int, rows: torch.Tensor) -> torch.Tensor:
    return 2 * rows.to(torch.float32)


def changed(folder: Path, copy: Path, *, twice_first: bool = False) -> Path:
    """`folder` with the steps done to its tensors by hand, in float32."""
    copy.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (copy / file.name).write_bytes(file.read_bytes())
            continue
        by_hand = {}
        for name, values in load_file(file).items():
            flat = values.to(torch.float32).view(-1, values.shape[-1] if values.ndim > 1 else 1)
            flat = 2 * flat if twice_first else flat
            by_hand[name] = by_row(name, 0, flat).view(values.shape)
        save_file(by_hand, copy / file.name)
    return copy


@pytest.mark.parametrize("step", [1, 3, 64, 1 << 20])
def test_a_step_comes_before_the_permutation_of_rows(step: int, tmp_path: Path) -> None:
    # Biases are permuted, too.
    folder = checkpoints.build("biases", tmp_path)
    wanted = tensors(changed(folder, tmp_path / "by-hand"), (), 1 << 20)
    plain = tensors(folder, (), 1 << 20)
    assert not torch.equal(plain["blk.0.attn_q.weight"], wanted["blk.0.attn_q.weight"])
    found = tensors(folder, (by_row,), step)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert torch.equal(found[name], values), name


@pytest.mark.parametrize("step", [1, 5, 100, 1 << 20])
def test_stacked_experts_take_the_step_each_from_its_first_row(step: int, tmp_path: Path) -> None:
    folder = zoo_build.build("mixtral-12", tmp_path)
    wanted = tensors(changed(folder, tmp_path / "by-hand"), (), 1 << 20)
    found = tensors(folder, (by_row,), step)
    for name, values in wanted.items():
        assert torch.equal(found[name], values), name


def test_steps_are_done_in_their_order_and_behind_the_scales(tmp_path: Path) -> None:
    folder = checkpoints.build("plain", tmp_path)
    wanted = tensors(changed(folder, tmp_path / "by-hand", twice_first=True), (), 1 << 20)
    found = tensors(folder, (twice, by_row), 7)
    for name, values in wanted.items():
        assert torch.equal(found[name], values), name
    scaled = zoo_build.build("mixtral-fp8", tmp_path)
    plain, doubled = tensors(scaled, (), 1 << 20), tensors(scaled, (twice,), 7)
    for name, values in plain.items():
        assert torch.equal(doubled[name], 2 * values), name
