import re
import subprocess
import sys
from pathlib import Path

import fusemix

ROOT = Path(__file__).resolve().parents[1]

HEAVY = {"gradio", "psycopg", "faiss", "diffusers", "transformers", "torch", "whisper"}


def test_importing_the_library_stays_light():
    code = f"import sys, fusemix; heavy = {HEAVY!r} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_adapters_do_not_bring_in_encoders_or_the_app():
    code = (
        "import sys, fusemix.model.adapters, fusemix.model.config, fusemix.training.mixup, fusemix.training.losses;"
        "import fusemix.evaluation.metrics;"
        "heavy = {'gradio', 'faiss', 'diffusers', 'transformers', 'whisper', 'demo'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_documented_and_importable():
    page = (ROOT / "docs/api.md").read_text()
    documented = {path.rpartition(".")[2]: path for path in re.findall(r"^::: (\S+)$", page, re.M)}
    assert sorted(fusemix.__all__) == sorted([*documented, "__version__"])
    for name, path in documented.items():
        public = getattr(fusemix, name)
        assert path == f"{public.__module__}.{public.__qualname__}"
