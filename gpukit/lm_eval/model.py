"""The model class. It imports lm_eval, so nothing else in gpukit imports it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from tqdm import tqdm

from gpukit.chat import Message, accepted, render
from gpukit.errors import ArgumentError, GpukitError, did_you_mean
from gpukit.evaluation.requests import Pair, Scorer
from gpukit.events import Event, Warned
from gpukit.generation.loading import LoadedModel
from gpukit.lm_eval.arguments import MAX_GEN_TOKS, adapters_of, batch_of, generate_options
from gpukit.recipes.load import load

ARGUMENTS = (
    "pretrained", "device", "adapters", "num_ctx", "max_length", "max_gen_toks", "add_bos_token",
    "pre", "batch_size", "max_batch_size",
)  # fmt: skip


class GpukitLM(TemplateLM):  # type: ignore[misc]
    """A model of gpukit as lm_eval asks for one.

    pretrained      what `gpukit.load` takes: a GGUF, a folder, a name in the store, hf.co/org/name
    device, pre     as for `gpukit.load`
    adapters        which work beside the weights: DIR or DIR:WEIGHT, several with ; between them
    num_ctx         the longest context, the model's own unless it is given (or max_length)
    max_gen_toks    how much is generated where a task does not say
    add_bos_token   whether texts begin with BOS; what the vocabulary says unless it is given
    batch_size      the most sequences that go through the model together, or auto
    """

    def __init__(self, pretrained: str | Path | None = None, **given: Any) -> None:
        super().__init__()
        if unknown := sorted(given.keys() - set(ARGUMENTS)):
            hint = did_you_mean(unknown[0], ARGUMENTS)
            raise ArgumentError(
                f"unknown model argument {unknown[0]!r}; known: {', '.join(ARGUMENTS)}{hint}"
            )
        if pretrained is None:
            raise ArgumentError("no model; --model_args pretrained=FILE names one")
        self._name = str(pretrained)
        model = load(
            self._name, given.get("device") or "auto", pre=given.get("pre"),
            adapters=adapters_of(given.get("adapters")), report=_warn,
        )  # fmt: skip
        self._loaded: LoadedModel = model.loaded
        self.tokenizer = model.tokenizer
        self._device = model.decoder.device
        num_ctx = given.get("num_ctx") or given.get("max_length")
        batch = batch_of(given.get("batch_size"), given.get("max_batch_size"))
        self._scorer = Scorer(self._loaded, self._name, num_ctx, batch)
        self._max_gen_toks = int(given.get("max_gen_toks") or MAX_GEN_TOKS)
        wanted = given.get("add_bos_token")
        self._add_bos = self.tokenizer.add_bos if wanted is None else bool(wanted)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> "GpukitLM":
        """The model of `--model_args` as one text; see `create_from_arg_obj`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "GpukitLM":
        """The model of `--model_args`, which go over lm_eval's own options such as --device. Of
        those comes cuda:0 where nobody asked for a device, so without CUDA it is auto."""
        other = {key: value for key, value in (additional_config or {}).items() if value}
        if str(other.get("device")).startswith("cuda") and not torch.cuda.is_available():
            del other["device"]
        return cls(**(other | arg_dict))

    @property
    def max_length(self) -> int:
        """The most tokens that go through the model at once."""
        return self._scorer.num_ctx

    @property
    def max_gen_toks(self) -> int:
        """How many tokens are generated where a task does not say."""
        return self._max_gen_toks

    @property
    def eot_token_id(self) -> int:
        """EOS; `ArgumentError` for a vocabulary without it."""
        return self._one_of(self.tokenizer.eos_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: BOS, else EOS."""
        return self._one_of(self.tokenizer.bos_id, self.tokenizer.eos_id)

    def _one_of(self, *ids: int | None) -> int:
        for number in ids:
            if number is not None:
                return number
        raise ArgumentError(f"{self._name}: the vocabulary has no BOS and no EOS to begin with")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """The ids of a text, BOS in front unless the text has it or `add_special_tokens` is false.
        Control tokens in a text are those tokens, as in transformers."""
        ids: list[int] = self.tokenizer.encode(string, add_special=False, parse_special=True)
        bos = self.tokenizer.bos_id
        wanted = self._add_bos if add_special_tokens is None else add_special_tokens
        if not wanted or bos is None or (add_special_tokens is None and ids[:1] == [bos]):
            return ids
        return [bos, *ids]

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """(ln p, whether greedy decoding says it) of each (key, context, continuation)."""
        pairs = [Pair(tuple(context), tuple(rest)) for _, context, rest in requests]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        with tqdm(total=len(pairs), disable=disable_tqdm, desc="loglikelihood") as bar:
            for number, answer in self._scorer.scored(pairs):
                found[number] = (answer.log_p, answer.is_greedy)
                key = requests[number][0]
                if key is not None:
                    self.cache_hook.add_partial("loglikelihood", key, found[number])
                bar.update()
        return found

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """ln p of each text, in windows as lm_eval cuts them: each token is expected once. As in
        its own classes the BOS that a vocabulary puts in front is scored, too."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for (text,) in (request.args for request in requests):
            ids = self.tok_encode(text)
            cut = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            made = [(None, *make_disjoint_window(pair)) for pair in cut]
            windows.extend(made)
            counts.append(len(made))
        answers = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        found = []
        for request, count in zip(requests, counts, strict=True):
            found.append(sum(next(answers)[0] for _ in range(count)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model says behind each context, up to the texts that end it."""
        found = []
        for request in tqdm(requests, disable=disable_tqdm, desc="generate_until"):
            context, asked = request.args
            # Of torch's generator, which --seed sets: a run can be repeated, and repeats differ.
            seed = int(torch.randint(1 << 31, ()))
            options = generate_options(asked, self.tokenizer, seed, self.max_gen_toks)
            prompt = self.tok_encode(context) or [self.prefix_token_id]
            found.append(self._scorer.generate(prompt, options))
            self.cache_hook.add_partial("generate_until", request.args, found[-1])
        return found

    @property
    def tokenizer_name(self) -> str:
        """What tells this model's prompts from those of others."""
        return self._name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's template, None where none is asked for. `ArgumentError` where it has none,
        or is asked for by a name."""
        if not chat_template:
            return None
        if self.tokenizer.chat_template is None:
            raise ArgumentError(f"{self._name} has no chat template; leave --apply_chat_template")
        if chat_template is not True and chat_template != "default":
            raise ArgumentError(f"chat template {chat_template!r}: only the default one can be had")
        found: str = self.tokenizer.chat_template
        return found

    def apply_chat_template(
        self, chat_history: Sequence[Message], add_generation_prompt: bool = True
    ) -> str:
        """The prompt that the template makes of a conversation; without `add_generation_prompt` it
        ends with the last message's text, which the model goes on with."""
        template = self.chat_template(True)
        assert template is not None
        ends = (self.tokenizer.bos_id, self.tokenizer.eos_id)
        bos, eos = ("" if i is None else self.tokenizer.token_text(i) for i in ends)
        text = render(
            template, accepted(template, chat_history), bos_token=bos, eos_token=eos,
            add_generation_prompt=add_generation_prompt,
        )  # fmt: skip
        if add_generation_prompt:
            return text
        last = str(chat_history[-1]["content"]).strip()
        at = text.rfind(last)
        if at < 0:
            raise GpukitError("the chat template leaves the last message out; it cannot go on")
        return text[: at + len(last)]


def _warn(event: Event) -> None:
    if isinstance(event, Warned):
        tqdm.write(f"Warning: {event.text}")
