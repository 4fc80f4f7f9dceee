"""A command line in this process, one in a process of its own, and a tiny model in a folder."""

import os
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from sparse_attn.cli.app import app

from ..tiny_model import save_tiny


@pytest.fixture
def run():
    """Runs the command in this process: result with exit_code, stdout, stderr."""

    def call(*arguments, input=None):
        result = CliRunner().invoke(
            app, [str(argument) for argument in arguments], input=input, prog_name="sparse-attn"
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def fresh():
    """Starts the command as a process of its own, as a user does."""

    def start(*arguments, **options):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "90"}
        return subprocess.Popen(
            [sys.executable, "-m", "sparse_attn", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment, text=True,
            # A shell's background jobs ignore Ctrl-C and hand that on; a user's terminal does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **options,
        )  # fmt: skip

    return start


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a random four-layer model of 1,024 tokens of context, one token a byte."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))
