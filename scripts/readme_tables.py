"""Writes the README's tables of figures from the committed result files, or checks that they agree.

python scripts/readme_tables.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
PEERS = ("SDPA flash", "SDPA cuDNN", "FlexAttention", "flash-attn-4")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if the README says something else")
    options = parser.parse_args()
    old = README.read_text()
    new = with_tables(old)
    if options.check:
        if old != new:
            print("README.md and the result files differ: run python scripts/readme_tables.py", file=sys.stderr)
        return int(old != new)
    README.write_text(new)
    return 0


def with_tables(readme: str) -> str:
    """The README with every generated part made anew."""
    parts = {"performance": performance(), "kept": kept(), "quality": quality()}
    for name, text in parts.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, rest = readme.split(begin)
        readme = before + begin + text + end + rest.split(end)[1]
    return readme


def performance() -> str:
    gpu = json.loads((RESULTS / "h100" / "attention.json").read_text())
    chosen = json.loads((RESULTS / "h100" / "selected.json").read_text())
    cpu = RESULTS / "cpu" / "attention.json"
    tables = [gpu_table(gpu), chosen_table(chosen)] + ([cpu_table(json.loads(cpu.read_text()))] if cpu.exists() else [])
    return "\n".join(tables)


def gpu_table(result: dict[str, Any]) -> str:
    versions = result["versions"]
    dates = sorted({date for row in result["rows"] for date in row.get("dates", {}).values()} or {result["date"]})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    peers = [name for name in PEERS if any(name in row["times"] for row in result["rows"])]
    lines = [
        f"One {result['gpu']}, PyTorch {versions['torch'].split('+')[0]}, Triton {versions['triton']}, bfloat16, batch 1, "
        f"{when}: `sparse-attn bench`, which checks each answer before it times it. Milliseconds, forward / "
        "backward; dense attention (SDPA) computes all pairs. TFLOP/s count kept pairs, of random blocks the whole blocks. "
        "Memory: the peak beyond inputs, outputs and gradients, as a share of them.",
        "",
        f"| pattern | tokens | heads | sparse-attn | TFLOP/s | memory | {' | '.join(peers)} |",
        "|---" * (6 + len(peers)) + "|",
    ]
    for row in result["rows"]:
        own = row["times"]["sparse-attn"]
        rates = [
            factor * 4 * row["Hq"] * row["D"] * row["pairs"] / own[step][0] / 1e9
            for step, factor in (("forward", 1.0), ("backward", 2.5))
        ]
        cells = [_milliseconds(own), " / ".join(f"{rate:.0f}" for rate in rates), f"{row['overhead']:.1%}"]
        cells += [_milliseconds(row["times"].get(name)) for name in peers]
        form = "" if row["causal"] else ", bidirectional"
        timed = row.get("dates", {}).get("sparse-attn", dates[-1])
        form += "" if timed == dates[-1] else f", timed {timed}"
        heads = f"{row['Hq']} / {row['Hkv']} x {row['D']}"
        lines.append(f"| {_code(row['pattern'])}{form} | {row['T'] // 1024}K | {heads} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def chosen_table(result: dict[str, Any]) -> str:
    lines = [
        f"Blocks that content chooses, on one {result['gpu']}, Hq {result['Hq']}, Hkv {result['Hkv']}, D {result['D']}, bfloat16, "
        f"{result['date']}: `python benchmarks/selected_attention.py`. The forward pass includes the choice; `rows` queries choose "
        "together. Dense: PyTorch's flash kernel in the same process; its backward pass was timed at 64K.",
        "",
        "| pattern | tokens | forward | faster than dense by | backward | faster than dense by |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [_code(row["pattern"]), f"{row['T'] // 1024}K"]
        for step in ("forward", "backward"):
            faster = row["times faster"].get(step)
            cells += [_short(row["times"][step][0]), "" if faster is None else f"{faster:.1f} x"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _milliseconds(times: dict[str, list[float]] | None) -> str:
    if times is None:
        return ""
    return " / ".join(_short(times[step][0]) for step in ("forward", "backward") if step in times)


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _code(pattern: str) -> str:
    return "`" + pattern.replace("|", "\\|") + "`"


def cpu_table(result: dict[str, Any]) -> str:
    shape, machine = result["shape"], result["machine"]
    lines = [
        f"On a CPU ({machine['cpu']}, {machine['threads']} threads), `{shape['pattern']}`, causal, Hq {shape['Hq']}, Hkv "
        f"{shape['Hkv']}, D {shape['D']}: `python benchmarks/cpu_attention.py`, {result['date']}. Seconds; the ideal is "
        "dense pairs / kept pairs.",
        "",
        "| tokens | dtype | pass | sparse-attn | dense, SDPA | faster by | of ideal |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        for step in ("forward", "forward_backward"):
            times = row[step]
            ours, dense = _short(times["sparse-attn"][0]), _short(times["SDPA"][0])
            lines.append(
                f"| {row['length'] // 1024}K | {row['dtype']} | {step.replace('_', ' + ')} | {ours} | {dense} "
                f"| {times['ratio']:.1f} x | {times['of_ideal']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def quality() -> str:
    """What SmolLM2 keeps as ever more layers become sparse, from the search for the layers that must stay full."""
    entries = map(json.loads, (RESULTS / "h100" / "layer_mapping.jsonl").read_text().splitlines())
    checks = [entry for entry in entries if entry["key"].startswith("check ")]
    lines = [
        "SmolLM2-135M-Instruct reads *War and Peace*; a layer is dense, or `window(512) | sinks(4)`. Needles: facts found "
        "among three depths each at 1K, 2K and 4K tokens. The layers that stay full were searched for, on other needles, by "
        "`python scripts/search_layer_mapping.py`. One small model and single needles: what a model keeps has to be "
        "measured for each model.",
        "",
        "| layers that stay full | pairs at 4K | cache that is needed at 4K | needles | perplexity at 4K |",
        "|---|---|---|---|---|",
    ]
    for entry in checks:
        sparse = sparse_layers(entry["key"])
        cells = entry["value"]
        longest = cells[max(cells, key=int)]
        full = [str(layer) for layer in range(30) if layer not in sparse]
        named = "all 30" if not sparse else ", ".join(full) if len(full) <= 8 else f"{len(full)} of 30"
        needles = [needle["found"] for cell in cells.values() for needle in cell["needles"]]
        lines.append(
            f"| {named} | {longest['kept_pairs'] / longest['dense_pairs']:.0%} "
            f"| {longest['cache_bytes'] / longest['dense_cache_bytes']:.0%} | {sum(needles)} of {len(needles)} "
            f"| {longest['perplexity']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def kept() -> str:
    """What `sparse-attn eval` found of the embedded model: needles by length, and perplexity."""
    needles = json.loads((RESULTS / "cpu" / "eval_needle.json").read_text())
    texts = json.loads((RESULTS / "cpu" / "eval_perplexity.json").read_text())
    perplexity = {table["row"]: table for table in texts["perplexity"]}
    scores = {(score["row"], score["length"]): score for score in needles["scores"]}
    lengths = needles["lengths"]
    text = next(iter(perplexity.values()))
    pieces = "one piece" if text["pieces"] == 1 else f"{text['pieces']} pieces"
    depths = len({cell["depth"] for cell in needles["cells"]})
    names = ", ".join(f"{length // 1024}K" for length in lengths)
    lines = [
        f"SmolLM2-135M-Instruct is asked for a needle at each of {depths} depths of {names} tokens, and reads {pieces} of *War and "
        f"Peace* of {text['length'] // 1024}K tokens: `sparse-attn eval --depths {depths} --html eval.html` and `sparse-attn eval "
        f"--tasks perplexity --lengths {text['length'] // 1024}k --samples {text['pieces']}`, {needles['about']['date'][:10]}, on "
        f"two CPU threads; the needles took {minutes(needles)}, the texts {minutes(texts)}. p: exact paired test against dense.",
        "",
        "| row | perplexity | " + " | ".join(f"needles at {length // 1024}K" for length in lengths) + " | all | p |",
        "|---" * (len(lengths) + 4) + "|",
    ]
    tests = {found["row"]: found["p"] for found in needles["comparisons"]}
    for row in (row["name"] for row in needles["rows"]):
        cells = [f"{scores[row, length]['right']} of {scores[row, length]['n']}" for length in [*lengths, None]]
        p = f"{tests[row]:.2g}" if row in tests else ""
        name = "dense" if row == "dense" else _code(row)
        lines.append(f"| {name} | {perplexity[row]['perplexity']:.1f} | {' | '.join(cells)} | {p} |")
    return "\n".join([*lines, "", gemma()]) + "\n"


def minutes(found: dict[str, Any]) -> str:
    """How long an evaluation took that was not stopped."""
    seconds = re.fullmatch(r"(\d+) s", found["about"]["measured in"])
    assert seconds is not None, found["about"]["measured in"]
    return f"{int(seconds[1]) / 60:.0f} minutes"


def gemma() -> str:
    """The same of a model that has windows of its own, in a sentence."""
    found = json.loads((RESULTS / "cpu" / "eval_gemma3_270m.json").read_text())
    scores = {score["row"]: score for score in found["scores"] if score["length"] is None}
    n = scores["dense"]["n"]
    tests = {one["row"]: one["p"] for one in found["comparisons"]}
    told = "; ".join(
        f"as it came {score['right']} of {n}"
        if row == "dense"
        else f"`{row}` {score['right']} of {n} (p = {tests[row]:.2g})"
        for row, score in scores.items()
    )
    lengths = " and ".join(f"{length // 1024}K" for length in found["lengths"])
    depths = len({cell["depth"] for cell in found["cells"]})
    asked = f'--lengths {",".join(f"{length // 1024}k" for length in found["lengths"])} --pattern "{",".join(list(scores)[1:])}"'
    return (
        f"Gemma-3-270m, a base model whose own layers are five windows of 512 to each full one, finds needles at {depths} depths "
        f"of {lengths} tokens so: {told}; `sparse-attn eval --model gemma3-270m {asked}`, {found['about']['date'][:10]}. Patterns "
        "leave its own windows in force."
    )


def sparse_layers(key: str) -> tuple[int, ...]:
    """The sparse layers that a check's key ends with."""
    return tuple(int(layer) for layer in re.findall(r"\d+", key[key.rindex("(") :]))


if __name__ == "__main__":
    sys.exit(main())
