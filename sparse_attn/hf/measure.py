"""A Hugging Face model as something that evaluations can read with: timed prefill, surprise at tokens, greedy answers.

Fits the protocol `Reader` of `evals` without importing it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ..patterns import Full, Pattern, Window, parse
from .kv_cache import cache_bytes, own_windows
from .prefill_choice import LayerPairs, spent_pairs
from .sparsify import restore, sparsify

RAW_ENDING = "\n\nAnswer:"
HEAD_CHUNK = 256  # positions whose logits over the whole vocabulary exist at once


@dataclass(frozen=True)
class Reading:
    """What came of one prompt; see `evals.reader.Reading`."""

    answer: str
    prefill_seconds: float
    surprise_by_part: tuple[float, ...]
    scored_tokens: int

    @property
    def surprise(self) -> float:
        return sum(self.surprise_by_part)


@dataclass(frozen=True)
class Cost:
    """What reading some tokens costs, in all layers together; see `evals.reader.Cost`."""

    kept_pairs: int
    dense_pairs: int
    cache_bytes: int
    dense_cache_bytes: int


class HfReader:
    """Reads prompts with a causal language model, through one pattern a layer.

    Args:
        model, tokenizer: As `sparse_attn.hf.load_model` gives them; the model is used as it is, where it is.
        implementation: Of attention through patterns, as for `sparsify`; None chooses.
        raw: Ask without the chat template, as base models need it: the question is continued from "Answer:" on.

    Source: perplexity is exp(surprise / scored_tokens).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        implementation: str | None = None,
        raw: bool = False,
    ) -> None:
        self.model = model
        self.implementation = implementation
        self.raw = raw
        self.tokenizer = tokenizer
        self._stop = _stop_tokens(model, tokenizer)
        self._attended: tuple[str | None, ...] = (None,) * self.layers
        self._last_pairs: int | None = None

    @property
    def layers(self) -> int:
        return self._config.num_hidden_layers

    @property
    def context(self) -> int:
        return self._config.max_position_embeddings

    @property
    def _config(self) -> Any:
        return self.model.config.get_text_config(decoder=True)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def beginning(self) -> list[int]:
        """The tokens that the tokenizer itself puts before a text, such as ``<bos>``; with many models none."""
        text = "x"
        (first, *_) = self.encode(text)
        whole = list(self.tokenizer.encode(text, verbose=False))
        return whole[: whole.index(first)]

    def chat_frame(self) -> tuple[str, str]:
        """What the chat template puts before and after a user's message; raw: what begins a text, and "Answer:".

        Raises:
            ValueError: the tokenizer has no chat template, and `raw` was not asked for.
        """
        if self.raw:
            return str(self.tokenizer.decode(self.beginning(), skip_special_tokens=False)), RAW_ENDING
        if not self.tokenizer.chat_template:
            raise ValueError("the model's tokenizer has no chat template: choose a model that was trained to be asked")
        mark = "\u241f"
        messages = [{"role": "user", "content": mark}]
        framed = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        before, _, after = str(framed).partition(mark)
        return before, after

    def attend(self, patterns: Sequence[str | None]) -> None:
        """Attend through these patterns from now on, one a layer; all None is the unmodified model.

        Raises:
            ValueError: a pattern with positions for each batch example; or what `sparsify` refuses.
            NotImplementedError: what `sparsify` refuses.
        """
        chosen = {layer: parse(text) for layer, text in enumerate(patterns) if text is not None}
        restore(self.model)
        self._attended, self._last_pairs = (None,) * self.layers, None  # what holds if the next step refuses
        if listed := [pattern for pattern in chosen.values() if pattern.examples is not None]:
            raise ValueError(f"pattern {listed[0]!r} lists Global positions for {listed[0].examples} batch examples, but "
                             "prompts are read in batches of any size: give one list for all")  # fmt: skip
        if chosen:
            sparsify(self.model, chosen, implementation=self.implementation)
        self._attended = tuple(patterns)

    def in_force(self, patterns: Sequence[str | None]) -> list[Pattern]:
        """What each layer keeps through these patterns, cut to the model's own sliding window where it has one."""
        own = own_windows(self.model)
        return [
            pattern if window is None else pattern.within(Window(window))
            for pattern, window in zip(_parsed(patterns), own, strict=True)
        ]

    def cost(self, patterns: Sequence[str | None], tokens: int) -> Cost:
        """Pairs of a prefill of that many tokens, and bytes of its KV cache; nothing is run.

        Of layers that choose by content, the most that there can be; `last_pairs` tells what was spent.
        """
        chosen = dict(enumerate(_parsed(patterns)))
        in_force = self.in_force(patterns)
        pairs = {pattern: pattern.pairs(tokens) for pattern in {*in_force, Full()}}
        cache = cache_bytes(self.model, chosen, tokens)
        return Cost(
            kept_pairs=sum(pairs[pattern] for pattern in in_force),
            dense_pairs=pairs[Full()] * len(in_force),
            cache_bytes=cache.needed,
            dense_cache_bytes=cache.allocated,
        )

    @property
    def last_pairs(self) -> int | None:
        """Pairs that the last prefill computed in all layers, on average over prompts and heads; None: see `cost`."""
        return self._last_pairs

    @torch.inference_mode()
    def read(self, tokens: Sequence[int], *, scored: Sequence[range] = (), answer_tokens: int = 16) -> Reading:
        """Read a prompt, score the tokens at the positions in `scored`, and answer greedily.

        Args:
            tokens: The prompt, chat template included.
            scored: Positions in the prompt, from 1 on, whose tokens' surprise is summed.
            answer_tokens: The most tokens to write; 0: none.

        Raises:
            ValueError: no tokens, a scored position outside the prompt, or more tokens than the model's context.
        """
        self._check(tokens, scored, answer_tokens)
        ids = torch.tensor([list(tokens)], device=self.model.device)
        cache = DynamicCache()
        before = spent_pairs(self.model)
        start = time.perf_counter()
        with _watched(self.model.get_decoder()) as seen:
            logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
            first = int(logits.argmax())  # waits for the device
        seconds = time.perf_counter() - start
        self._note_spent(before, len(tokens), prompts=1)
        surprise = self._surprise(seen[0], ids[0], logits, scored) if scored else ()
        (answer,) = self._write([first], cache, answer_tokens)
        return Reading(answer, seconds, surprise, sum(map(len, scored)))

    @torch.inference_mode()
    def read_many(self, prompts: Sequence[Sequence[int]], *, answer_tokens: int = 16) -> list[str]:
        """Read prompts of one length at once, and answer each greedily.

        Args:
            prompts: At least one; all have the same number of tokens.
            answer_tokens: The most tokens to write to each.

        Raises:
            ValueError: no prompts, prompts of different lengths, or more tokens than the model's context.

        Memory: the KV cache of all prompts together.
        """
        if len({len(tokens) for tokens in prompts}) != 1:
            raise ValueError(f"prompts must be of one length, got {sorted(len(tokens) for tokens in prompts)}")
        self._check(prompts[0], (), answer_tokens)
        ids = torch.tensor([list(tokens) for tokens in prompts], device=self.model.device)
        cache = DynamicCache()
        before = spent_pairs(self.model)
        logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        self._note_spent(before, len(prompts[0]), prompts=len(prompts))
        return self._write(logits.argmax(-1).tolist(), cache, answer_tokens)

    def _note_spent(self, before: Mapping[int, LayerPairs], tokens: int, prompts: int) -> None:
        """Keep what a prefill has spent since `before`, for `last_pairs`; the model's own counts go on as they are."""
        spent = spent_pairs(self.model)
        self._last_pairs = None
        if spent:
            new = sum((sum(pairs.kept) - sum(before[layer].kept)) / len(pairs.kept) for layer, pairs in spent.items())
            in_force = self.in_force(self._attended)
            self._last_pairs = round(new / prompts) + sum(
                pattern.pairs(tokens) for layer, pattern in enumerate(in_force) if layer not in spent
            )

    def _check(self, tokens: Sequence[int], scored: Sequence[range], answer_tokens: int) -> None:
        if not tokens:
            raise ValueError("tokens must hold at least one token, got none")
        if len(tokens) + answer_tokens > self.context:
            raise ValueError(f"{len(tokens):,} tokens and an answer of {answer_tokens} exceed the model's context of "
                             f"{self.context:,} tokens")  # fmt: skip
        for part in scored:
            if len(part) and not 1 <= min(part) <= max(part) < len(tokens):
                raise ValueError(f"scored must name positions 1 to {len(tokens) - 1} of the prompt, got {part}")

    def _surprise(
        self,
        hidden: Float[Tensor, "1 T C"],
        ids: Int[Tensor, " T"],
        last: Float[Tensor, "1 V"],
        scored: Sequence[range],
    ) -> tuple[float, ...]:
        """Sums of -ln p over each scored range. The logits exist for a chunk of positions at a time."""
        head = self.model.get_output_embeddings()
        if not torch.allclose(head(hidden[:, -1]).float(), last.float(), rtol=1e-2, atol=1e-2):
            raise NotImplementedError(
                f"{type(self.model).__name__} changes its logits after the output layer (a soft cap or a scale), which "
                "scoring does not support"
            )
        sums = []
        for part in scored:
            total = 0.0
            for chunk in torch.tensor(list(part), dtype=torch.long, device=ids.device).split(HEAD_CHUNK):
                logits = head(hidden[0, chunk - 1]).float()
                total += float(nn.functional.cross_entropy(logits, ids[chunk], reduction="sum"))
            sums.append(total)
        return tuple(sums)

    def _write(self, first: list[int], cache: DynamicCache, most: int) -> list[str]:
        """Go on greedily from each prompt's first token, until all have ended or hold `most` tokens."""
        written: list[list[int]] = [[] for _ in first]
        tokens, going = first, [most > 0] * len(first)
        while True:
            for line, token in enumerate(tokens):
                going[line] = going[line] and token not in self._stop
                if going[line]:
                    written[line].append(token)
                    going[line] = len(written[line]) < most
            if not any(going):
                break
            ids = torch.tensor([[token] for token in tokens], device=self.model.device)
            logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits
            tokens = logits[:, -1].argmax(-1).tolist()
        return [str(self.tokenizer.decode(line, skip_special_tokens=True)).strip() for line in written]


def _parsed(patterns: Sequence[str | None]) -> list[Pattern]:
    return [Full() if text is None else parse(text) for text in patterns]


def _stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    named = getattr(model.generation_config, "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    return frozenset(token for token in [*listed, tokenizer.eos_token_id] if token is not None)


@contextmanager
def _watched(decoder: nn.Module) -> Iterator[list[Tensor]]:
    """The decoder's last hidden states, caught on their way to the output layer."""
    seen: list[Tensor] = []
    hook = decoder.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    try:
        yield seen
    finally:
        hook.remove()
