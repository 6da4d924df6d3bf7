"""Plans as people write them: what is read, and the line of what is wrong."""

import json
import re
from pathlib import Path

import pytest

from gpukit.batches.document import read_document, with_variables
from gpukit.batches.reading import read_plan
from gpukit.batches.schema import BatchPlan, Evaluate, JobOptions, json_schema
from gpukit.batches.schema_entries import Type
from gpukit.errors import ArgumentError

ROOT = Path(__file__).resolve().parents[3]
GOOD = "sources: [a]\ntypes: [F16]\noutput: out/{source}-{adapter}-{type}.gguf\n"


def _plan(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return path


def test_a_plan_is_read(tmp_path: Path) -> None:
    text = """
    variables: {out: results}
    sources: [models/*, {path: org.gguf, name: mine}]
    adapters: [none, lora, [first, "second:0.5"], {paths: [x, y], name: both}, null]
    types: [q4_k_m, Q4_K, F16, {target_bpw: 4.5}, {target_size: 3G}, {like: t/a.gguf}]
    output: ${out}/{source}/{adapter}-{type}.gguf
    exclude: [{source: mine, type: [F16, Q*]}]
    options: {memory: 2G, tensor_types: [attn_v=Q8_0]}
    overrides:
      - match: {type: F16}
        options: {pure: true}
    """
    plan = read_plan(_plan(tmp_path, text)).plan
    assert [(s.path, s.name) for s in plan.sources] == [("models/*", None), ("org.gguf", "mine")]
    assert [a.paths for a in plan.adapters] == [
        (), ("lora",), ("first", "second:0.5"), ("x", "y"), (),
    ]  # fmt: skip
    assert [each.called for each in plan.types] == ["Q4_K_M", "Q4_K_M", "F16", "4.5bpw", "3G", "a"]
    assert [each.type for each in plan.types] == ["Q4_K_M", "Q4_K_M", "F16", None, None, None]
    assert plan.output == "results/{source}/{adapter}-{type}.gguf"
    assert plan.exclude[0].type == ("F16", "Q*")
    assert (plan.options.memory, plan.options.tensor_types) == (2 * 10**9, ("attn_v=Q8_0",))
    assert plan.overrides[0].options.model_fields_set == {"pure"}


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        (GOOD + "outptu: x\n", 4, "unknown key 'outptu'; known: sources, adapters, types, output, "
         "store, variables, include, exclude, options, evaluate, calibrate, push, overrides: did "),
        ("sources:\n  - a\n  - path: b\n    nmae: c\ntypes: [F16]\noutput: x.gguf\n", 4,
         "unknown key 'nmae'; known: path, name: did you mean 'name'?"),
        (GOOD + "options:\n  device: cpu\n\n  memroy: 1G\n", 7, "did you mean 'memory'?"),
        ("sources: [a]\ntypes:\n- F16\n- Q9\noutput: x.gguf\n", 4, "unknown type 'Q9'; known: F32"),
        ("sources: [a]\noutput: x.gguf\n", 1, "'types' is missing"),
        ("sources: [a]\ntypes: [F16]\n", 1, "'output' is missing: a pattern such as"),
        ("sources: a\ntypes: [F16]\noutput: x.gguf\n", 1, "sources is 'a'; a list is needed"),
        ("sources: []\ntypes: [F16]\noutput: x.gguf\n", 1, "sources is []; one at least is needed"),
        ("sources: [a]\ntypes: [F16]\noutput: x.bin\n", 3, "x.bin: must end in .gguf"),
        ("sources: [a]\ntypes: [F16]\noutput: '{sorce}.gguf'\n", 3,
         "unknown {sorce}; known: {source}, {adapter}, {type}: did you mean 'source'?"),
        ("sources: [a]\ntypes: [F16]\noutput: '{source.path}.gguf'\n", 3, "unknown {source.path}"),
        ("sources: [a]\ntypes: [F16]\noutput: '{.gguf'\n", 3, "{.gguf: "),
        (GOOD + "options:\n  pure: maybe\n", 5, "options.pure is 'maybe'; true or false"),
        (GOOD + "options:\n  merge_base: nf5\n", 5, "options.merge_base is 'nf5'; input should be "
         "'full', 'nf4' or 'nf4-single'"),
        (GOOD + "options: {memory: 2X}\n", 4, "'2X' is no size; write bytes, or K, M or G"),
        (GOOD + "options:\n  device: gpu\n", 5, "unknown device 'gpu'"),
        (GOOD + "options:\n  pre: lama\n", 5, "lama"),
        (GOOD + "options:\n  combine: {method: tise}\n", 5, "no method tise"),
        (GOOD + "overrides:\n- match: {source: a}\n  options:\n    tensor_types: [x=Q9]\n", 7,
         "unknown tensor type 'Q9'"),
        (GOOD + "store: true\noptions:\n  pure: true\n", 6, "'pure' is for files; with `store`"),
        (GOOD.replace("F16", "{target_bpw: 4, type: F16}"), 2, "one of type, target_bpw, "
         "target_size, like is needed, type and target_bpw is given"),
        (GOOD.replace("F16", "{target_bpw: 44}"), 2, "above 0 and up to 32 bits per weight are"),
        ("sources: [5]\ntypes: [F16]\noutput: x.gguf\n", 1, "sources.0 is 5; a text, or keys with"),
        ("sources: [null]\ntypes: [F16]\noutput: x.gguf\n", 1, "sources.0 is null; a text, or"),
        ("sources: [[a]]\ntypes: [F16]\noutput: x.gguf\n", 1, "sources.0 is ['a']; a text, or"),
        (GOOD.replace("F16", "null"), 2, "types.0 is null; a text, or keys with values"),
        (GOOD + "adapters: [5]\n", 4, "adapters.0 is 5; a text or a list, or keys with"),
        (GOOD + "options:\n  converter: 5\n", 5, "options.converter is 5; a text, or keys with"),
        (GOOD + "options: null\n", 4, "options is null; keys with values are needed"),
        (GOOD.replace("F16", "{like: 't/{source}.gguf'}"), 2, "say what {type} becomes, with `na"),
        (GOOD.replace("F16", "{like: 't/{type}.gguf', name: x}"), 2, "unknown {type}; known: {sou"),
        (GOOD.replace("F16", "{target_size: 3G}") + "store: true\n", 2, "the store's models have "
         "file types"),
        (GOOD + "options:\n  keep_split: true\n  split_max_size: 1G\n", 5, "exclude each other"),
        (GOOD + "types: [Q8_0]\n", 4, "'types' stands here again, after line 2; keep one"),
        ("sources: [a\n", 2, "no YAML: "),
        ("- a\n", 1, "no plan: keys are needed: sources"),
        ("", 1, "no plan: keys are needed: sources"),
        ("sources: ['${NOT_THERE}/a']\n", 1, "${NOT_THERE} is neither one of `variables`"),
        ("sources: ['${1}/a']\n", 1, "${NAME} or ${NAME:-DEFAULT} is needed"),
        ("a: &a [*a]\n", 1, "levels"),
    ],
)  # fmt: skip
def test_a_fault_names_its_line(text: str, line: int, told: str, tmp_path: Path) -> None:
    path = _plan(tmp_path, text)
    with pytest.raises(ArgumentError) as caught:
        read_plan(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert told in str(caught.value)


def test_of_several_faults_the_first_is_told(tmp_path: Path) -> None:
    path = _plan(tmp_path, "sources: [a]\ntypes: [Q9]\noutput: x.gguf\nmore: 1\nand: 2\n")
    with pytest.raises(ArgumentError, match=r"plan.yaml:2: unknown type 'Q9'.*see also line 4, 5"):
        read_plan(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sources: [a]\n\ntyps: [F16]\noutput: x.gguf\n",
         r"plan.yaml:3: unknown key 'typs'; known: .*: did you mean 'types'\?; and 'types' is "
         r"missing$"),
        ("sorces: [a]\ntyps: [F16]\noutput: x.gguf\n",
         r"plan.yaml:1: unknown key 'sorces'; .*; and 'sources' is missing; and 'types' is "
         r"missing; see also line 2$"),
        ("output: x.gguf\n", r"plan.yaml:1: 'sources' is missing; and 'types' is missing$"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_told_before_what_is_missing(
    text: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=told):
        read_plan(_plan(tmp_path, text))


def test_what_is_no_file_of_text(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"none.yaml: No such file"):
        read_plan(tmp_path / "none.yaml")
    with pytest.raises(ArgumentError, match="directory"):
        read_plan(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF\xff\xfe")
    with pytest.raises(ArgumentError, match="no text: byte 4 is not UTF-8"):
        read_plan(tmp_path / "model.gguf")


def test_a_small_file_cannot_mean_a_large_one(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(ArgumentError, match=r"over 200000 values"):
        read_document(_plan(tmp_path, "\n".join(lines)))


def test_variables_come_from_the_plan_then_from_the_environment(tmp_path: Path) -> None:
    text = "variables: {a: 1, b: '${HOME_}/b'}\nx: ['${a}${b}', '$${a}', '${c:-none}', '${HOME_}']"
    found = with_variables(read_document(_plan(tmp_path, text)), {"HOME_": "/h", "a": "2"})
    assert found.value["x"] == ["1/h/b", "${a}", "none", "/h"]


def test_the_schema_in_the_docs_is_the_schema() -> None:
    text = (ROOT / "docs" / "batch.schema.json").read_text()
    # `gpukit batch --schema` prints it.
    assert json.loads(text) == json_schema()


def test_the_schema_takes_what_is_read() -> None:
    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert {"sources", "types"} == set(schema["required"])
    items = schema["properties"]["adapters"]["items"]["anyOf"]
    assert [item.get("type") for item in items] == ["string", "array", None, "null"]


def test_the_docs_name_every_key_and_their_plans_are_plans(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "batch.md").read_text()
    named = set(re.findall(r"`(\w+)`", text))
    assert {*BatchPlan.model_fields, *JobOptions.model_fields, *Type.model_fields} <= named
    assert {*Evaluate.model_fields} <= named
    blocks = re.findall(r"^```yaml.*\n((?:.*\n)*?)```$", text, re.MULTILINE)
    plans = [block for block in blocks if "\nsources:" in f"\n{block}"]
    assert len(plans) == 2
    for plan in plans:
        read_plan(_plan(tmp_path, plan))
