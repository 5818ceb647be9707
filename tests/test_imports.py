import subprocess
import sys

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
