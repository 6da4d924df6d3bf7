"""Values of a wrong kind, and usual ones besides the plainest: what Python's face makes of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import DATA

import gpukit
from gpukit.given import list_of, path_of, texts_of
from gpukit.recipes.create import plan_create
from gpukit_kernels.devices import device_name

TINY = DATA / "tiny-shakespeare"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUKIT_MODELS", str(tmp_path / "models"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("given") / "tiny.gguf"
    gpukit.convert(TINY, out, "F16", device="cpu")
    return out


def test_types_may_be_gone_over_once(file: Path) -> None:
    def types() -> Iterator[str]:
        yield "Q8_0"
        yield "F16"

    made = gpukit.convert_many(TINY, "c-{type}.gguf", types(), device="cpu")
    made += gpukit.quantize_many(file, "q-{type}.gguf", types(), device="cpu")
    names = [result.path.name for result in made]
    assert names == ["c-Q8_0.gguf", "c-F16.gguf", "q-Q8_0.gguf", "q-F16.gguf"]
    assert all(Path(name).is_file() for name in names)
    with gpukit.plan_many(file, types()) as plans:
        assert plans.types == ("Q8_0", "F16")
    with pytest.raises(gpukit.ArgumentError, match="no types; give some"):
        gpukit.convert_many(TINY, "n-{type}.gguf", iter(()))


LISTED = r"types: a list such as \['Q8_0'\] is wanted, not "


@pytest.mark.parametrize(
    ("types", "told"), [("Q8_0", r"'Q8_0' \(str\)"), (None, "None"), ([5], r"\[5\] \(list\)")]
)
def test_types_are_a_list(types: Any, told: str) -> None:
    for call in (
        lambda: gpukit.convert_many("nowhere", "x-{type}.gguf", types),
        lambda: gpukit.quantize_many("nowhere", "x-{type}.gguf", types),
        lambda: gpukit.merge_many("nowhere", ["lora"], "x-{type}.gguf", types),
        lambda: gpukit.plan_many("nowhere", types),
        lambda: gpukit.perplexities(["nowhere"], "text", types=types),
    ):
        with pytest.raises(gpukit.ArgumentError, match=f"^{LISTED}{told}$"):
            call()


def test_a_device_has_several_forms() -> None:
    where = torch.device("cuda", 1)
    assert [device_name(each) for each in (None, "cpu,cuda:1", torch.device("cpu"), where)] == [
        "auto", "cpu,cuda:1", "cpu", "cuda:1",
    ]  # fmt: skip
    assert device_name(torch.device("cpu", 0)) == "cpu"
    sizes = {
        gpukit.convert(TINY, "d.gguf", "Q8_0", device=each).size
        for each in ("cpu", None, torch.device("cpu"))
    }
    assert len(sizes) == 1
    model = gpukit.load("d.gguf", torch.device("cpu"))
    assert len(model.generate("First", num_predict=2).tokens) == 2


@pytest.mark.thorough
def test_a_target_is_measured_on_such_a_device() -> None:
    whole = gpukit.convert(TINY, "d.gguf", "Q8_0", device="cpu")
    within = gpukit.convert(TINY, "t.gguf", target_bpw=6, device=torch.device("cpu"))
    assert within.size < whole.size


TYPE = "a type such as 'Q4_K_M' is wanted, not 8 (int)"
DEVICE = "a device such as 'auto', 'cpu' or 'cuda:0' is wanted, not 5 (int)"
MODEL = "a path, the name of a model in the store or an id of the hub is wanted"
NAME = "the name of a model such as 'llama3.2:1b' is wanted, not None"
PLAN = "the path of a plan is wanted, not "
PATTERNS = "a list of REGEX=TYPE such as ['ffn_down=Q6_K'] is wanted, not "
any_gpukit: Any = gpukit
WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "device": (lambda: any_gpukit.convert(TINY, "x.gguf", "F16", device=5), DEVICE),
    "load": (lambda: any_gpukit.load(TINY, 5), DEVICE),
    "type": (lambda: any_gpukit.convert(TINY, "x.gguf", 8), TYPE),
    "type of a folder": (lambda: any_gpukit.merge(TINY, ["lora"], "x", 8), TYPE),
    "plan": (lambda: any_gpukit.plan(TINY, 8), TYPE),
    "out": (
        lambda: any_gpukit.convert(TINY, None, "F16"),
        "a path for the output is wanted, not None",
    ),
    "imatrix": (
        lambda: any_gpukit.convert(TINY, "x.gguf", "F16", imatrix=5),
        "imatrix: a path is wanted, not 5 (int)",
    ),
    "model": (lambda: any_gpukit.convert(None, "x.gguf", "F16"), f"None: {MODEL}"),
    "inspect": (lambda: any_gpukit.inspect(5), f"5: {MODEL}"),
    "pre": (
        lambda: any_gpukit.plan(TINY, "F16", pre=5),
        "pre: the name of a pre-tokenizer is wanted, not 5 (int)",
    ),
    "converter": (
        lambda: any_gpukit.plan(TINY, "F16", converter=5),
        "converter: the path of a checkout of llama.cpp is wanted, not 5 (int)",
    ),
    "options": (
        lambda: any_gpukit.quantize(TINY, "x.gguf", "F16", options={}),
        "options: gpukit.Options is wanted, not {} (dict)",
    ),
    "adapters": (
        lambda: any_gpukit.merge(TINY, 5, "x.gguf"),
        "adapters: a list such as ['my-lora'] is wanted, not 5 (int)",
    ),
    "weight": (
        lambda: any_gpukit.load(TINY, adapters=[("lora",)]),
        "an adapter and its weight, as ('my-lora', 0.5), is wanted, not ('lora',) (tuple)",
    ),
    "batch": (lambda: any_gpukit.batch(None), f"{PLAN}None"),
    "batch of a dict": (lambda: any_gpukit.batch({}), f"{PLAN}{{}} (dict)"),
    "overrides": (lambda: any_gpukit.make_overrides(None), f"{PATTERNS}None"),
    "overrides of numbers": (lambda: any_gpukit.make_overrides([5]), f"{PATTERNS}[5] (list)"),
    "one override": (
        lambda: any_gpukit.make_overrides("ffn=Q6_K"), f"{PATTERNS}'ffn=Q6_K' (str)"
    ),
    "output type": (
        lambda: any_gpukit.make_overrides([], output_type=5),
        "a type such as 'Q6_K' is wanted, not 5 (int)",
    ),
    "create": (lambda: any_gpukit.Store().create(None, gpukit.Modelfile(source="x")), NAME),
    "show": (lambda: any_gpukit.Store().show(None), NAME),
    "copy": (lambda: any_gpukit.Store().copy(None, "x"), NAME),
    "Modelfile": (
        lambda: any_gpukit.Store().create("x", None),
        "a Modelfile or the path of one is wanted, not None",
    ),
    "store": (lambda: any_gpukit.Store(5), "a folder for the store is wanted, not 5 (int)"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_kind_is_told(what: str) -> None:
    call, told = WRONG[what]
    with pytest.raises(gpukit.ArgumentError) as caught:
        call()
    assert str(caught.value) == told


def test_no_options_are_the_plain_ones(file: Path) -> None:
    wanted = gpukit.quantize(file, "a.gguf", "Q8_0", device="cpu")
    given = gpukit.quantize(file, "b.gguf", "Q8_0", options=None, device="cpu")
    assert Path("a.gguf").read_bytes() == Path("b.gguf").read_bytes()
    with gpukit.plan(file, "Q8_0", options=None) as plan:
        assert plan.size == given.size == wanted.size
    with gpukit.plan_many(file, ["Q8_0"], options=None) as plans:
        assert plans.size == plan.size


@pytest.mark.parametrize("source", ["folder", "gguf"])
def test_a_closed_plan_says_so(source: str, file: Path) -> None:
    model = TINY if source == "folder" else file
    plan, plans = gpukit.plan(model, "Q8_0"), gpukit.plan_many(model, ["Q8_0"])
    for each in (plan, plans):
        each.close()
        each.close()
        with pytest.raises(gpukit.ArgumentError, match=f"{model}: this plan of it is closed"):
            each.write("z-{type}.gguf", device="cpu")
    assert plan.size == plans.size
    assert not list(Path().glob("z*"))


def test_what_a_list_is() -> None:
    assert texts_of(iter("ab"), "x") == ("a", "b")
    assert list_of({5: 1}, "x") == (5,)
    assert path_of("a", "x") == path_of(Path("a"), "x") == Path("a")
    for given in (b"a", 5, None):
        with pytest.raises(gpukit.ArgumentError, match=r"^x is wanted, not"):
            list_of(given, "x")
        with pytest.raises(gpukit.ArgumentError, match=r"^x is wanted, not"):
            path_of(given, "x")
    with pytest.raises(gpukit.ArgumentError, match=r"not 'a\\x00'"):
        path_of("a\0", "x")
    with pytest.raises(gpukit.ArgumentError) as caught:
        texts_of([0] * 1000, "x")
    assert len(str(caught.value)) < 100


UNREADABLE: list[tuple[dict[str, Any], str]] = [
    ({"parameters": {"temperature": None}}, "parameters: temperature: a number is wanted, not No"),
    ({"parameters": {"temperature": "hot"}}, "parameters: temperature: a number is wanted, not 'h"),
    ({"parameters": {"temperature": 10**400}}, "parameters: temperature: a number is wanted"),
    ({"parameters": {"temperature": float("nan")}}, "parameters: invalid float value [nan]"),
    ({"parameters": {"num_ctx": "64"}}, "parameters: num_ctx: a whole number is wanted, not '64'"),
    ({"parameters": {"top_k": 1.5}}, "parameters: top_k: a whole number is wanted, not 1.5"),
    ({"parameters": {"use_mmap": 1}}, "parameters: use_mmap: True or False is wanted, not 1 (int)"),
    ({"parameters": {"stop": ["a", 5]}}, "parameters: stop: a list of texts is wanted, not ['a'"),
    ({"parameters": {"nope": 1}}, "parameters: unknown parameter 'nope' (known: draft_num"),
    ({"parameters": {"top_p": 7}}, "parameters: top_p is 7.0; it goes from 0 to 1"),
    ({"parameters": {5: 1}}, "parameters: a dict such as {'temperature': 0} is wanted, not {5: 1}"),
    ({"parameters": None}, "parameters: a dict such as {'temperature': 0} is wanted, not None"),
    ({"licenses": "MIT"}, "licenses: a list of texts is wanted, not 'MIT' (str)"),
    ({"licenses": [5]}, "licenses: a list of texts is wanted, not [5] (list)"),
    ({"adapters": "/x/lora"}, "adapters: a list of paths is wanted, not '/x/lora' (str)"),
    ({"projectors": "a.gguf"}, "projectors: a list of paths is wanted"),
    ({"drafts": 5}, "drafts: a list of paths is wanted, not 5 (int)"),
    ({"system": 5}, "system: a text is wanted, not 5 (int)"),
    ({"template": 5}, "template: a text is wanted, not 5 (int)"),
    ({"template": "{{ if }"}, "TEMPLATE: (line 1): template error"),
    ({"requires": "x"}, "requires: must be a valid semver (e.g. 0.14.0)"),
    ({"folder": 5}, "folder: a path is wanted, not 5 (int)"),
    ({"source": None}, "FROM None: a path, the name of a model"),
    ({"messages": "hi"}, "messages: a list of role and content each is wanted, not 'hi' (str)"),
    ({"messages": [("user", "x")]}, "message 0: {'role': 'user', 'content': 'a text'} is wanted"),
    ({"messages": [{"role": "user"}]}, "message 0: {'role': 'user', 'content': 'a text'} is wan"),
    ({"messages": [{"role": "user", "content": 5}]}, "message 0: {'role': 'user', 'content': 'a t"),
    ({"messages": [{"role": "me", "content": "x"}]}, "message 0: role must be one of system, user"),
]  # fmt: skip


def test_a_modelfile_of_python_is_checked_before_anything_is_written(file: Path) -> None:
    store = gpukit.Store()
    made = store.create("good", gpukit.Modelfile(source=str(file), system="Be."))
    before = sorted(Path("models").rglob("*"))
    for fields, told in UNREADABLE:
        modelfile = gpukit.Modelfile(**{"source": str(file), **fields})
        for call in (store.create, lambda *given: plan_create(store, *given)):
            with pytest.raises(gpukit.ModelfileError) as caught:
                call("good", modelfile)
            assert str(caught.value).startswith(told)
    assert sorted(Path("models").rglob("*")) == before
    assert store.list()[0].digest == made.digest


def test_a_modelfile_of_python_is_what_its_text_is(file: Path) -> None:
    store = gpukit.Store()
    Path("Modelfile").write_text(
        f"FROM {file}\nPARAMETER stop xyz\nPARAMETER num_ctx 64\nPARAMETER temperature 0.7\n"
        "PARAMETER top_p 1\nPARAMETER use_mmap true\nPARAMETER mirostat 1\nREQUIRES v0.14.0\n"
        "LICENSE MIT\nMESSAGE user Hi\nMESSAGE assistant Yes?\n"
    )
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    parameters = {"stop": "xyz", "num_ctx": 64.0, "temperature": 0.7, "top_p": 1, "use_mmap": True}
    heard: list[object] = []
    written = store.create("text", "Modelfile")
    made = store.create(
        "python",
        gpukit.Modelfile(
            source=file.name, folder=file.parent, parameters={**parameters, "mirostat": 1},
            licenses=("MIT",), messages=talk, requires="v0.14.0",
        ),
        report=heard.append,
    )  # fmt: skip
    assert made.digest == written.digest
    assert gpukit.Warned("parameter mirostat is deprecated") in heard
    assert store.show("python").params["stop"] == ["xyz"]
