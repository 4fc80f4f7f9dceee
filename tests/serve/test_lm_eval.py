"""lm-evaluation-harness runs a model through a pattern, and this project's tasks. Skipped where it is not installed.

Its own imports and those of its dependencies warn of what is theirs to mend: such warnings are no errors here.
"""

import os
import subprocess
import sys

import pytest
import yaml

from sparse_attn.evals.tasks import TASKS
from sparse_attn.serve.lm_eval import TASKS as FOLDER

from ..tiny_model import save_tiny

pytestmark = pytest.mark.filterwarnings("ignore")


def needs_lm_eval():
    return pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: make test-lm-eval")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"), context=4096)


def test_every_task_has_a_file():
    files = [yaml.safe_load(file.read_text()) for file in FOLDER.glob("[a-z]*.yaml")]
    assert {file["dataset_kwargs"]["name"] for file in files} == set(TASKS)
    assert {file["task"] for file in files} == {f"sparse_attn_{name}" for name in TASKS}


def test_without_it_the_command_says_what_to_install():
    program = "import sys; sys.modules['lm_eval'] = None; import runpy; runpy.run_module('sparse_attn.serve.lm_eval')"
    done = subprocess.run(
        [sys.executable, "-c", program.replace("')", "', run_name='__main__')")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: lm-evaluation-harness is not installed; run: pip install 'sparse-attn[lm-eval]'\n"


def evaluate(model_args, tasks, **settings):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    import sparse_attn.serve.lm_eval.model  # noqa: F401  registers the model

    manager = TaskManager(include_path=str(FOLDER), metadata={**model_args, **settings.pop("metadata", {})})
    return simple_evaluate(
        model="sparse_attn", model_args=model_args, tasks=tasks, task_manager=manager, bootstrap_iters=0, **settings
    )


def test_tasks_run_dense_and_through_a_pattern(tiny):
    needs_lm_eval()
    results = {}
    for pattern in (None, "window(16) | sinks(2)"):
        model_args = {"pretrained": tiny} | ({"pattern": pattern} if pattern else {})
        found = evaluate(
            model_args, ["sparse_attn_needle"], gen_kwargs="max_gen_toks=4",
            metadata={"max_seq_lengths": [700], "depths": 2},
        )  # fmt: skip
        assert found["results"]["sparse_attn_needle"]["correct,none"] == 0.0
        results[pattern] = [str(sample["resps"]) for sample in found["samples"]["sparse_attn_needle"]]
        assert len(results[pattern]) == 2
    assert results[None] != results["window(16) | sinks(2)"]


def test_scores_are_the_tasks_own(tiny):
    needs_lm_eval()
    sys.path.insert(0, str(FOLDER))
    try:
        import documents
    finally:
        sys.path.remove(str(FOLDER))
    rows = documents.load("multi_value", pretrained=tiny, max_seq_lengths=[1500], depths=1)["test"]
    first, second = rows[0]["target"].split(", ")
    assert documents.score(rows[0], [f"{second} and {first}"]) == {"value": 1.0, "correct": 1.0}
    assert documents.score(rows[0], [second]) == {"value": 0.5, "correct": 0.0}
    assert first in rows[0]["input"]


def test_bad_arguments_are_named(tiny):
    needs_lm_eval()
    from sparse_attn.serve.lm_eval.model import SparseAttnLM

    with pytest.raises(ValueError, match=r"full_layers names layers \[9\], but the model's are 0 to 3"):
        SparseAttnLM(tiny, "window(8)", "0+9")
    with pytest.raises(ValueError, match="unknown term 'windw'"):
        SparseAttnLM(tiny, "windw(8)")
    with pytest.raises(ValueError, match="dtype must name a torch dtype"):
        SparseAttnLM(tiny, dtype="half a float")


def test_its_own_command_runs_the_model_and_the_tasks(tiny):
    """As the README shows it, in a process of its own: also where the harness's default device, a GPU, is not there."""
    needs_lm_eval()
    done = subprocess.run(
        [sys.executable, "-m", "sparse_attn.serve.lm_eval", "--model", "sparse_attn",
         "--model_args", f"pretrained={tiny},pattern=window(64) | sinks(4)", "--include_path", str(FOLDER),
         "--tasks", "sparse_attn_needle", "--metadata", '{"max_seq_lengths": [700], "depths": 1}',
         "--gen_kwargs", "max_gen_toks=4"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "sparse_attn_needle" in done.stdout


@pytest.mark.slow
def test_rulers_own_tasks_on_the_embedded_model(monkeypatch):
    """Dense against sparse at 1K: the single needle is kept dense, and lost through a window that does not reach it.

    The harness writes 500 prompts a task whatever the limit, which takes longer than reading these four: here it writes four.
    """
    needs_lm_eval()
    from lm_eval.tasks.ruler import prepare_niah

    from sparse_attn.hf.converted import converted_folder
    from sparse_attn.hf.default_model import default_gguf

    write = prepare_niah.generate_samples
    monkeypatch.setattr(
        prepare_niah, "generate_samples", lambda *given, **named: write(*given, **(named | {"num_samples": 4}))
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = str(converted_folder(default_gguf()))
    tasks = ["niah_single_1", "niah_multikey_2"]
    scores = {}
    for pattern in (None, "window(128) | sinks(4)"):
        model_args = {"pretrained": folder} | ({"pattern": pattern} if pattern else {})
        found = evaluate(model_args, tasks, gen_kwargs="max_gen_toks=16", metadata={"max_seq_lengths": [1024]})
        assert {found["n-samples"][name]["original"] for name in tasks} == {4}
        scores[pattern] = {name: found["results"][name]["1024,none"] for name in tasks}
    print(scores)
    assert scores[None]["niah_single_1"] == 1.0
    assert scores["window(128) | sinks(4)"]["niah_single_1"] < 1.0
