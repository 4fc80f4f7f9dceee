"""Configs for the command line's tests: real ones, and folders that hold them."""

from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "planner" / "configs"
MISTRAL = CONFIGS / "Mistral-7B-v0.1.json"
LLAMA = CONFIGS / "Llama-3.1-8B.json"
QWEN3 = CONFIGS / "Qwen3-Coder-30B-A3B-Instruct.json"
QWEN35 = CONFIGS / "Qwen3.5-35B-A3B.json"
GEMMA = CONFIGS / "Gemma-3-1B-it.json"
