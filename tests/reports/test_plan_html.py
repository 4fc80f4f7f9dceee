"""The plan's page: whole, escaped, asking for nothing; and its script adds up to what the planner says, in a browser."""

import html
import itertools
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sparse_attn.planner import allowed_splits, describe, find_gpu, fit, gpus, read_config
from sparse_attn.reports import plan_html
from sparse_attn.reports.plan_table import parts

from .test_demo_html import Page

CONFIGS = Path(__file__).parents[1] / "planner" / "configs"
NAMES = [
    "Qwen3-30B-A3B", "Qwen3.5-35B-A3B", "Mistral-7B-v0.1", "Llama-4-Scout-17B-16E-Instruct", "Gemma-3-1B-it", "gpt-oss-120b",
    "DeepSeek-V3.2", "Jamba-v0.1", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "Phi-3-mini-128k-instruct",
]  # fmt: skip
EVIL = "</script><script>alert('x')</script> & \"quoted\""
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def models():
    return [(name, describe(read_config(CONFIGS / f"{name}.json"))) for name in NAMES]


@pytest.fixture(scope="module")
def page(models):
    first = fit(models[0][1], find_gpu("a100-80gb"), context=262144)
    return plan_html.render(models, [first] * len(models))


def test_the_page_is_whole_and_asks_for_nothing(page):
    parsed = Page(page)
    assert parsed.open == []
    assert parsed.links == []
    assert "http" not in page.replace("http-equiv", "")
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_names_and_types_are_escaped(models):
    import dataclasses

    evil = dataclasses.replace(models[0][1], model_type=EVIL)
    text = plan_html.render([(EVIL, evil)], [fit(evil, find_gpu("a100-80gb"))])
    assert Page(text).tags.count("script") == 2
    assert "alert('x')</script>" not in text
    (carried,) = re.findall(r'id="plan-data">(.*?)</script>', text, re.DOTALL)
    assert json.loads(carried)["models"][0]["name"] == EVIL


def test_the_script_makes_no_markup_of_data(page):
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", page)


# --- in a real browser ---------------------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: the page's script was not run")

PROBE = """
<pre id="probe"></pre><script>
const report = { errors: [], plans: [], moved: {} };
window.addEventListener("error", (event) => report.errors.push(event.message));
for (const asked of CASES) report.plans.push(plan(asked));
const nodes = [...document.querySelectorAll("output, #verdict, #sum, #seen")];
const look = () => ({
  text: nodes.map((node) => node.textContent).join(),
  bars: [...document.querySelectorAll("#bar b, #bar u")].map((node) => node.style.width + node.style.left).join(),
  strip: [...document.querySelectorAll("#strip b")].map((node) => node.style.height).join(),
});
for (const [id, value] of MOVES) {
  const before = look();
  document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event("input"));
  const after = look();
  report.moved[id] = Object.keys(before).filter((key) => before[key] !== after[key]);
}
report.shown = Object.fromEntries(nodes.map((node) => [node.id, node.textContent]));
report.state = state;
report.requests = performance.getEntriesByType("resource").length;
report.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.getElementById("probe").textContent = JSON.stringify(report);
</script>
"""
MOVES = [
    ("model", "4"),
    ("context", "304"),
    ("batch", "16"),
    ("weights", "int4"),
    ("kv", "fp8"),
    ("gpu", "3"),
    ("utilization", "80"),
]


@pytest.fixture(scope="module")
def cases(models):
    """Questions over every model, with the arguments of `fit` for each."""
    draw = random.Random(4)
    cards = gpus()
    found = []
    for (index, (_, model)), again in itertools.product(enumerate(models), range(6)):
        splits = [count for count in (1, 2, 4, 8) if count in allowed_splits(model)]
        asked = {
            "model": index,
            "gpu": draw.randrange(len(cards)),
            "gpus": draw.choice(splits) if again % 2 else 1,
            "context": draw.choice(
                [1, 7, 511, 512, 513, 4096, 4097, 40_000, 262_144, 1_000_003, draw.randrange(1, 1 << 21)]
            ),
            "batch": draw.choice([1, 1, 2, 3, 8, 64]),
            "weights": draw.choice(["stored", *plan_html.WEIGHTS]),
            "kv": draw.choice(["bf16", "fp8", "int4", "fp32"]),
            "utilization": draw.choice([0.5, 0.9, 0.95, 1.0]),
        }
        found.append(asked)
    return found


@pytest.fixture(scope="module")
def probed(page, cases, tmp_path_factory):
    """What the page's script says in a browser."""
    if BROWSER is None:
        pytest.skip("no Chromium here: the page's script was not run")
    probe = PROBE.replace("CASES", json.dumps(cases)).replace("MOVES", json.dumps(MOVES))
    folder = tmp_path_factory.mktemp("page")
    (folder / "plan.html").write_text(page.replace("</body>", probe + "</body>"), encoding="utf-8")
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--window-size=390,800",
         "--dump-dom", (folder / "plan.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    assert found[1], "the script did not run to its end"
    return json.loads(html.unescape(found[1]))


@needs_browser
def test_the_page_adds_up_to_what_the_planner_says(probed, cases, models):
    assert probed["errors"] == []
    assert len(probed["plans"]) == len(cases)
    verdicts = set()
    for asked, shown in zip(cases, probed["plans"], strict=True):
        name, model = models[asked["model"]]
        wanted = fit(
            model, gpus()[asked["gpu"]], gpus=asked["gpus"], context=asked["context"], batch=asked["batch"], kv=asked["kv"],
            weights=None if asked["weights"] == "stored" else asked["weights"], utilization=asked["utilization"],
        )  # fmt: skip
        held = parts(wanted)
        sizes = shown["weights"], shown["growing"], shown["bounded"], shown["workspace"]
        assert sizes == tuple(held.values()), (name, asked)
        assert (shown["required"], shown["available"]) == (wanted.required_bytes, wanted.available_bytes), (name, asked)
        assert shown["fits"] == wanted.fits
        assert shown["maxContext"] == wanted.max_context, (name, asked)
        assert shown["maxBatch"] == wanted.max_batch, (name, asked)
        assert shown["perToken"] == pytest.approx(wanted.kv.growing_bytes_per_token, rel=1e-12)
        verdicts.add(wanted.fits)
    assert verdicts == {True, False}


@needs_browser
def test_everything_moves_at_once(probed):
    moved = probed["moved"]
    assert set(moved["model"]) == set(moved["context"]) == {"text", "bars", "strip"}
    for control in ("batch", "weights", "kv", "gpu", "utilization"):
        assert {"text", "bars"} <= set(moved[control]), control
    assert probed["state"]["context"] == 2**19
    assert probed["state"]["batch"] == 4


@needs_browser
def test_what_is_shown_is_what_was_added_up(probed, models):
    state = probed["state"]
    wanted = fit(
        models[state["model"]][1], gpus()[state["gpu"]], context=state["context"], batch=state["batch"], kv=state["kv"],
        weights=state["weights"], utilization=state["utilization"],
    )  # fmt: skip
    shown = probed["shown"]
    assert shown["verdict"] == ("fits" if wanted.fits else "does not fit")
    assert shown["max-context"].replace(",", "") == str(wanted.max_context)
    assert shown["size-growing"] == f"{parts(wanted)['growing KV'] / 1e9:.1f} GB"
    assert shown["seen"] == "4 of 26 layers see all of 524,288 tokens"


@needs_browser
def test_nothing_is_fetched_and_nothing_overflows_a_narrow_screen(probed):
    assert probed["requests"] == 0
    assert probed["overflow"] <= 0
