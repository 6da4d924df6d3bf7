"""Adapters of one base: of one rank, and of ranks that differ."""

import pytest
from support.combining import ALL, OTHERS, SAME, Family, make


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Three adapters of one rank."""
    configs = [{**config, "target_modules": ALL} for config in SAME]
    return make(tmp_path_factory.mktemp("same"), "llama", configs)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Three adapters of different ranks and modules."""
    targets = (ALL, ["q_proj", "down_proj", "embed_tokens"], ["q_proj", "v_proj"])
    configs = [
        {**config, "target_modules": modules}
        for config, modules in zip(OTHERS, targets, strict=True)
    ]
    return make(tmp_path_factory.mktemp("others"), "llama", configs)
