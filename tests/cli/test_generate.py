"""`sparse-attn generate` with a tiny random model: it streams, obeys its options, and says what does not fit."""

import pytest


@pytest.fixture
def ask(run, tiny):
    return lambda *arguments, **options: run("generate", "--model", tiny, "--max-new-tokens", 12, *arguments, **options)


def test_text_goes_to_stdout_and_remarks_to_stderr(ask):
    result = ask("--prompt", "hello")
    assert result.exit_code == 0
    assert result.stdout
    assert "read 8 tokens in" in result.stderr
    assert "\x1b" not in result.stdout


def test_a_full_pattern_writes_what_dense_attention_writes(ask):
    dense = ask("--prompt", "a longer text " * 20).stdout
    assert ask("--prompt", "a longer text " * 20, "--pattern", "full()").stdout == dense
    assert ask("--prompt", "a longer text " * 20, "--pattern", "window(1)", "--full-layers", "0,1,2,3").stdout == dense
    assert ask("--prompt", "a longer text " * 20, "--pattern", "window(1)").stdout != dense


def test_auto_with_coverage_1_writes_what_dense_attention_writes(ask):
    text = "a longer text " * 60
    dense = ask("--prompt", text).stdout
    assert ask("--prompt", text, "--pattern", "auto", "--coverage", "1").stdout == dense
    assert ask("--prompt", text, "--pattern", "Auto", "--coverage", "0.2").exit_code == 0


def test_a_file_and_a_question_after_it(ask, tmp_path):
    (tmp_path / "book.txt").write_text("A text.\n", encoding="utf-8-sig")
    both = ask("--prompt-file", tmp_path / "book.txt", "--prompt", "Why?")
    assert both.stdout == ask("--prompt", "A text.\n\nWhy?").stdout
    assert ask("--prompt-file", "-", "--prompt", "Why?", input="A text.\n").stdout == both.stdout


def test_raw_text_has_no_chat_template_around_it(ask):
    assert "read 5 tokens" in ask("--prompt", "hello", "--raw").stderr
    assert "read 8 tokens" in ask("--prompt", "hello", "--chat").stderr


def test_sampling_follows_the_seed(ask):
    hot = ["--prompt", "hello", "--temperature", "1.5"]
    assert ask(*hot, "--seed", 1).stdout == ask(*hot, "--seed", 1).stdout
    assert ask(*hot, "--seed", 1).stdout != ask(*hot, "--seed", 2).stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompt", "x" * 1100], "the prompt has 1,103 tokens, but the model's context is 1,024: shorten the text"),
        (
            ["--prompt", "x" * 1015],
            "the prompt's 1,018 tokens and --max-new-tokens 12 exceed the model's context of 1,024",
        ),
        (
            ["--prompt", "x", "--pattern", "window(4)", "--full-layers", "9"],
            "names layers [9], but the model's are 0 to 3",
        ),
        (["--prompt", "x", "--pattern", "anchors(4)"], "anchors"),
        (
            ["--prompt", "x", "--pattern", "auto", "--coverage", "1.2"],
            "--coverage': expected a number above 0 and at most 1, got '1.2'",
        ),
        (["--prompt", "x", "--pattern", "window(4)", "--coverage", "0.9"], "--coverage 0.9 is for --pattern auto"),
    ],
)
def test_what_does_not_fit_the_model(ask, arguments, sentence):
    result = ask(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_coverage_is_named_alike_by_every_command(run):
    helps = [" ".join(run(command, "--help").stdout.replace("│", " ").split()) for command in ("generate", "eval")]
    for text in helps:
        assert (
            "--coverage SHARE Of the pattern auto: the share of attention to keep, at most 1; 0.94 if left out." in text
        )


def test_a_model_without_a_chat_template(run, tmp_path):
    from ..tiny_model import tiny_model, tiny_tokenizer

    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer(template=None).save_pretrained(tmp_path)
    arguments = ["generate", "--model", tmp_path, "--prompt", "hello", "--max-new-tokens", 4]
    assert "no chat template: use --raw" in run(*arguments).stderr
    assert run(*arguments, "--raw").exit_code == 0
