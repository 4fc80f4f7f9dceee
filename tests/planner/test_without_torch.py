"""The planner answers in a fresh process that has loaded neither torch nor transformers."""

import subprocess
import sys

CODE = """
import sys
from sparse_attn.planner import describe, find_gpu, fit, read_config
model = describe(read_config(sys.argv[1]))
found = fit(model, find_gpu("a100-80gb"), context=4096)
print(found.fits, sorted({"torch", "transformers", "gguf", "safetensors", "huggingface_hub"} & set(sys.modules)))
"""


def test_in_a_fresh_process(request):
    config = request.path.parent / "configs" / "Qwen3-30B-A3B.json"
    out = subprocess.run(
        [sys.executable, "-c", CODE, str(config)], capture_output=True, text=True, check=True, timeout=60
    )
    assert out.stdout == "True []\n"
