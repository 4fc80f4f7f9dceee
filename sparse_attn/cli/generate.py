"""`sparse-attn generate`: a model reads a prompt, densely or through a pattern, and writes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import progress_bar, remarks
from .lists import layer_numbers
from .model import HELP, is_base_model, load
from .numbers import temperature as a_temperature
from .numbers import whole
from .pattern_option import Coverage, check_coverage, read_pattern

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_FILE_BYTES = 64 << 20  # far beyond any context; a larger file is a mistake, and tokenizing it would take minutes

EXAMPLES = """Examples:

[bold]sparse-attn generate --pattern "window(512) | sinks(4)" --prompt-file book.txt --prompt "Who is the hero?"[/bold]

[bold]sparse-attn generate --pattern auto --coverage 0.9 --prompt-file book.txt --prompt "Who is the hero?"[/bold]

[bold]sparse-attn generate --prompt "Name three rivers." --max-new-tokens 60[/bold]"""


def generate(
    model: Annotated[str | None, typer.Option(help=HELP, show_default=False)] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="What each token may see, e.g. 'window(512) | sinks(4)'; auto: chosen for each head and text. Without it: "
            "dense.",
            show_default=False,
        ),
    ] = None,
    coverage: Coverage = None,
    full_layers: Annotated[
        str | None, typer.Option(help="Layers that stay dense all the same, e.g. '0,5,11'.", show_default=False)
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="A UTF-8 text to read; '-' is standard input.", show_default=False)
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="The prompt; with --prompt-file, the question after the text.", show_default=False),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(parser=whole(1), metavar="N", help="The most tokens to write.")] = 128,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw",
            show_default=False,
            help="Ask through the model's chat template, or continue the text as it is. Without it: through the template, but "
            "for base models.",
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(parser=a_temperature, metavar="X", help="0: always the likeliest token.")
    ] = 0.0,
    seed: Annotated[
        int,
        typer.Option(parser=whole(0, 2**63 - 1), metavar="N", help="Of the random choices at a temperature above 0."),
    ] = 0,
) -> None:
    """Read a prompt through a pattern and stream what the model writes."""
    check_coverage([] if pattern is None else [pattern], coverage)
    chosen = None if pattern is None else read_pattern(pattern, coverage)
    if full_layers is not None and chosen is None:
        raise ValueError("--full-layers names layers that stay dense beside a pattern, but no --pattern was given")
    dense = layer_numbers(full_layers)
    text = prompt_text(prompt_file, prompt)

    loaded, tokenizer = load(model)
    if chosen is not None:
        from ..hf import sparsify

        n_layers = loaded.config.get_text_config(decoder=True).num_hidden_layers
        if outside := [layer for layer in dense if layer >= n_layers]:
            raise ValueError(f"--full-layers names layers {outside}, but the model's are 0 to {n_layers - 1}")
        sparsify(loaded, {layer: chosen for layer in range(n_layers) if layer not in dense})
    tokens = _tokens(tokenizer, text, not is_base_model(model) if chat is None else chat)
    check_length(loaded, tokens, max_new_tokens)
    _stream(loaded, tokenizer, tokens, max_new_tokens, temperature, seed)


generate.__doc__ = f"{generate.__doc__}\n\n{EXAMPLES}"


def prompt_text(file: Path | None, prompt: str | None) -> str:
    """The text of --prompt-file, of --prompt, or of both, one after the other.

    Raises:
        ValueError: neither, an empty one, or a file that is not UTF-8 text.
        OSError: a file that cannot be read.
    """
    if file is None and prompt is None:
        raise ValueError("nothing to read: give --prompt-file FILE, --prompt TEXT, or both")
    parts = []
    if file is not None:
        parts.append(_file_text(file))
    if prompt is not None:
        if not prompt.strip():
            raise ValueError("--prompt is empty")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise ValueError("--prompt is not UTF-8 text") from None
        parts.append(prompt)
    return "\n\n".join(parts)


def _file_text(file: Path) -> str:
    name = "standard input" if str(file) == "-" else str(file)
    if str(file) == "-":
        data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    else:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(
            f"--prompt-file: {name} is larger than {MAX_FILE_BYTES >> 20} MiB, which fits no model's context"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompt-file: {name} is not UTF-8 text (byte {error.start:,} cannot be decoded)") from None
    if not text.strip():
        raise ValueError(f"--prompt-file: {name} is empty")
    return text.rstrip()


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, chat: bool) -> list[int]:
    if not chat:
        return list(tokenizer.encode(text, verbose=False))
    if not tokenizer.chat_template:
        raise ValueError("the model's tokenizer has no chat template: use --raw to continue the text as it is")
    framed = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer.encode(str(framed), add_special_tokens=False, verbose=False))


def check_length(model: PreTrainedModel, tokens: list[int], new_tokens: int) -> None:
    """Refuse a prompt that does not fit the model's context together with what is to be written.

    Raises:
        ValueError: no tokens, or too many.
    """
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if not tokens:
        raise ValueError("the prompt has no tokens")
    if context is None:  # a model without position embeddings of its own, which states no limit
        return
    if len(tokens) > context:
        raise ValueError(
            f"the prompt has {len(tokens):,} tokens, but the model's context is {context:,}: shorten the text"
        )
    if len(tokens) + new_tokens > context:
        raise ValueError(
            f"the prompt's {len(tokens):,} tokens and --max-new-tokens {new_tokens:,} exceed the model's context of "
            f"{context:,}: at most {context - len(tokens):,} can be written"
        )


def _stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: list[int],
    most: int,
    temperature: float,
    seed: int,
) -> None:
    import time

    import torch
    from transformers import TextStreamer

    from ..hf.prefill import prefill

    start = time.perf_counter()
    with progress_bar() as progress:
        task = progress.add_task(f"reading {len(tokens):,} tokens", total=len(tokens))
        cache = prefill(model, tokens[:-1], on_tokens=lambda done: progress.update(task, completed=done))
    read = time.perf_counter() - start

    sampling: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        sampling["temperature"] = temperature
        torch.manual_seed(seed)
    ids = torch.tensor([tokens], device=model.device)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    start = time.perf_counter()
    with torch.inference_mode():
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=most, streamer=streamer,
            pad_token_id=tokenizer.eos_token_id, **sampling,
        )  # fmt: skip
    wrote = time.perf_counter() - start
    new = written.shape[1] - len(tokens)
    remarks().print(f"read {len(tokens):,} tokens in {read:.1f} s, wrote {new:,} in {wrote:.1f} s", style="dim")
