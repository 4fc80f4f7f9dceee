"""Write docs/quality.md and its pictures from the results of the experiments, and what README.md and docs/anchors.md say of them.

    python experiments/quality_page.py [--check]

Every number of the page that was measured comes from experiments/results/*.jsonl; a cell that was not run is shown as missing.
"""

import argparse

import matplotlib.pyplot as plt
import quality_prose as prose
from fact_variants import BUDGET, TARGET
from quality_pictures import picture, recall_picture
from quality_results import LETTERS, MISSING, ROOT, Group, Run, by_recipe, read
from quality_summary import told
from quality_tables import long_table, missing_table, recall_table, selection_table, verdicts


def stages(texts: list[str]) -> str:
    return ", then ".join("{2} steps of {1} documents of {0} tokens".format(*text.split("x")) for text in texts)


def recipe_text(letter: str, found: Group) -> list[str]:
    about = next(iter(found.values()))[0]
    short = about.get("tests_at_1024", {}).get("four_hops, far")
    return [
        f"### Recipe {letter}",
        "",
        f"- Base: {stages(about['base'])}; rate {about['base_rate']:g}. Four hops at 1,024 tokens: {short or MISSING}.",
        f"- Then each variant: {stages(about['planned_stages'])}; rate {about['rate']:g}. On {about['device']}.",
        "",
        *long_table(found),
        "",
    ]


def page(recall_runs: list[Run], groups: list[Group], selection: list[Run]) -> str:
    about = groups[0]["base"][0]
    rates = ", ".join(f"{rate:g}" for rate in sorted({run["rate"] for run in recall_runs}))
    text = TEXT.format(
        rates=rates,
        recall_table="\n".join(recall_table(recall_runs)),
        layers=about.get("layers"),
        width=about.get("width"),
        heads=about.get("heads"),
        mlp=about.get("mlp"),
        weights=about.get("weights", 0) / 1e6,
        budget=BUDGET,
        target=f"{TARGET:.0%}",
        recipes="\n".join(
            line for letter, found in zip(LETTERS, groups, strict=False) for line in recipe_text(letter, found)
        ),
        selection="\n".join(selection_table(selection)),
        verdicts="\n".join(verdicts(groups) + prose.margin(groups) + prose.choosing(groups, selection)),
        said="\n".join(
            line
            for lines in (
                prose.selectors(selection),
                prose.window_alone(groups),
                prose.anchors(groups),
                prose.chosen_blocks(groups),
                prose.routers(groups),
                prose.trees_and_hashing(groups),
                prose.repeats(groups),
            )
            for line in lines
        ),
        not_run="\n".join(prose.not_run(groups)),
        missing="\n".join(missing_table(groups)),
    )
    return text


# Words about the set-up; what was measured is put in. Published figures stand here as they were published.
TEXT = """\
# Quality, measured by training

Written by `python experiments/quality_page.py` from `experiments/results/`; do not edit by hand. Models are small and
tasks synthetic: this says which facts a pattern reaches and uses, not how well a large model writes.

![Perplexity of dense attention, window + sinks and window alone, beside the needles that each found](quality.svg)

The question, on a language model as it is: a window with sinks keeps the perplexity and loses what stands outside the window
(`sparse-attn eval`; figures in the [README](../README.md#quality)). What follows trains models through their patterns.

## The set-up, checked against outside figures

Associative recall of Zoology and Based (arXiv:2312.04927, arXiv:2402.18668, figure 2): two layers (a gated convolution,
then attention with one head), width 128, no positions, trained on 64 to 256 tokens with 4 to 64 pairs, tested on seven
settings up to 1,024 tokens with 256 pairs; the figure is the mean of the seven. `python experiments/recall.py`.
Differences: examples are drawn anew, not repeated; RMSNorm instead of LayerNorm; no dropout; rates {rates}.

{recall_table}

The third column is counted on the data, without any model: the share of questions whose pair lies inside the window of
the one attention layer (the convolution can carry a pair a position further, which counts for narrow windows). The
published curve is this curve: it measures reach, and a trained model uses all of it.

![recall through windows, published and ours](quality_recall.svg)

## Facts strewn over 16,384 tokens

16 pairs a -> b of drawn names lie among filler words, in any order; the document ends with questions. A pair may be
the next link of another: two hops are 8 chains of 2 pairs, four hops 4 chains of 4, and the answer is a chain's end.
One model for all tasks: {layers} layers, width {width}, {heads} heads, MLP {mlp}, a convolution of 4 tokens before each
attention, no positions, {weights:.1f}M weights. A base learns from scratch on short documents with dense attention;
every variant goes on from it with its own pattern, same data, steps and rates. `python experiments/long_facts.py`.

Recipes were changed from run to run as they showed what was lacking, so variants are compared within a recipe only. From
recipe B on, windows shrink with the document while it is short; from recipe D on the number of chosen blocks does too, with
the root of the length. TopBlocks chooses for every query by itself (rows=1), by the mean of a block's keys; `gated` by learned
pooling with a gated coarse attention (`nn.BlockSelector`, after arXiv:2502.11089); `taught` is `gated` with a further loss of
weight 0.1 (`nn.selection_loss`, after arXiv:2512.02556 and arXiv:2410.13276): at the queries that are asked, the coarse weights
imitate the mass that exact attention would give to each block. That costs training 16 dense rows a document, and nothing later.
`Router` is `taught` with a router (`nn.Router`) that gives each query and head none of the chosen blocks, a quarter or all, and a
loss of weight {budget} on what it gives above {target} of them on average; its FLOPs are those that it spent on the tests. `Hashed`
hashes queries and keys apart (after arXiv:2001.04451); `AnchorTree` is `nn.AnchorTreeKeys`.
In recipe E half of the steps after the base's first stage take four hops, and what finds far facts by means that the base
lacks (anchors, trees, hashing) first has 600 steps more on 64 documents of 256 tokens. Pooling, gates, anchors, trees and
routers learn at 20 times the rate from recipe D on.
FLOPs are those of attention at 16,384 tokens: kept pairs, extra keys, the choice of blocks, pooling and scan, products with the
directions of hashes but not their sorting (`experiments/attention_cost.py`); projections and MLP, which all variants share, are
left out.
Cells: mean over runs (least-most).

{recipes}
![accuracy of each variant, by recipe](quality_long.svg)

## What it says

{verdicts}

{selection}

{said}

## What was not run

Seeds of each variant and recipe (three were asked for):

{missing}

{not_run}
- Teaching at queries of filler: here all that is asked is taught. A language model is asked at every token, and would teach a
  sample.
- One size of model; lengths between 1,024 and 16,384 tokens are trained on but not tested; linear attention (Gated
  DeltaNet) was not checked against its outside figure.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if the pages are not those of the results"
    )
    args = parser.parse_args()
    plt.switch_backend("svg")
    plt.rcParams["svg.hashsalt"] = "quality"  # the same picture is the same file
    recall_runs, long_runs = read("recall.jsonl"), read("long_facts.jsonl")
    groups = by_recipe(long_runs)
    texts = told(groups) | {ROOT / "docs" / "quality.md": page(recall_runs, groups, read("selection.jsonl"))}
    if args.check:
        raise SystemExit(any(not path.exists() or path.read_text() != text for path, text in texts.items()))
    for path, text in texts.items():
        path.write_text(text)
    recall_picture(recall_runs, ROOT / "docs" / "quality_recall.svg")
    picture(groups, ROOT / "docs" / "quality_long.svg")


if __name__ == "__main__":
    main()
