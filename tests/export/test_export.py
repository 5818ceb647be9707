"""Exports are loaded by the tools they are for, in a fresh process, and give our numbers."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusemix.cli import export as command
from fusemix.encoders import load_encoder
from fusemix.export.folder import export
from fusemix.model.adapters import FusionModel
from fusemix.model.config import ModelConfig
from fusemix.model.ensemble import join_models

TEXTS = ["a dog runs on the grass", "Two  CHILDREN\nplay", "ship"]
PICTURES = [Image.new("RGB", (40, 30), colour) for colour in ("red", "navy", "white")]


def needs(*libraries):
    """Skip where a library of the extra [export] is not installed, and say which."""
    absent = [library for library in libraries if find_spec(library) is None]
    return pytest.mark.skipif(bool(absent), reason=f"{' and '.join(absent)} not installed: pip install .[export]")


@pytest.fixture(scope="module")
def model(encoders):
    """Untrained adapters with every kind of path, over packaged encoders."""
    torch.manual_seed(0)
    kinds = ("image", "text")
    dims, infos = ({m: f(encoders[m]) for m in kinds} for f in (lambda e: e.dim, lambda e: e.info()))
    config = ModelConfig(
        latent_dims=dims, encoders=infos, embed_dim=32, closed_form_dim=8, whiten_dim=16,
        views=("whitened", "components", "root"),
    )  # fmt: skip
    made = FusionModel(config)
    for adapter in made.adapters.values():
        for buffer in (adapter.mean, adapter.linear, adapter.whiten, adapter.rotate):
            buffer.normal_()
    return made.eval()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    return model.save_pretrained(tmp_path_factory.mktemp("mine") / "mine")


@pytest.fixture(scope="module")
def latents(encoders):
    """Return what the encoders make of TEXTS and PICTURES."""
    return {"text": encoders["text"].encode(TEXTS), "image": encoders["image"].encode(PICTURES)}


def in_fresh_process(code, folder, **given):
    """Run code that fills ``out`` from ``given``, where nothing of ours is imported yet."""
    np.savez(folder / "given.npz", **given)
    for number, picture in enumerate(PICTURES):
        picture.save(folder / f"{number}.png")
    wrapped = f"import numpy as np\ngiven = np.load('given.npz')\nout = {{}}\n{code}\nnp.savez('out.npz', **out)"
    paths = os.pathsep.join([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", wrapped], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(np.load(folder / "out.npz"))


def closed_form(model, modality, latents):
    """The formula: centred, projected, of unit length."""
    adapter = model.adapters[modality]
    out = (latents - adapter.mean.numpy()) @ adapter.linear.numpy()
    return out / np.linalg.norm(out, axis=1, keepdims=True)


@needs("sentence_transformers")
def test_the_closed_form_loads_in_sentence_transformers_without_our_code(model, saved, latents, tmp_path):
    about = export(saved, tmp_path / "st", "sentence-transformers", path="closed-form", modalities=["text"])
    code = """
import sys
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("st")
out["modules"] = [type(module).__name__ for module in model]
out["text"] = model.encode(["a dog runs on the grass", "Two  CHILDREN\\nplay", "ship"])
out["ours"] = "fusemix" in sys.modules
"""
    out = in_fresh_process(code, tmp_path)
    assert about["trust_remote_code"] is False and not out["ours"]
    assert out["modules"].tolist() == ["Transformer", "Pooling", "Dense", "Normalize"]
    np.testing.assert_allclose(out["text"], closed_form(model, "text", latents["text"]), atol=1e-5)


@needs("sentence_transformers")
@pytest.mark.slow
def test_all_paths_load_in_sentence_transformers_and_a_router_chooses_by_modality(model, saved, latents, tmp_path):
    assert export(saved, tmp_path / "st", "sentence-transformers")["trust_remote_code"] is True
    code = """
from PIL import Image
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("st", trust_remote_code=True)
out["router"] = type(model[0]).__name__
out["text"] = model.encode(["a dog runs on the grass", "Two  CHILDREN\\nplay", "ship"])
out["image"] = model.encode([Image.open(f"{i}.png") for i in range(3)])
out["files"] = model.encode([f"{i}.png" for i in range(3)])
out["similarity"] = model.similarity(out["text"], out["image"]).numpy()
"""
    out = in_fresh_process(code, tmp_path)
    text, image = (model.embed(m, latents[m]).numpy() for m in ("text", "image"))
    assert out["router"] == "Router"
    np.testing.assert_allclose(out["text"], text, atol=1e-5)
    np.testing.assert_allclose(out["image"], image, atol=1e-5)
    np.testing.assert_allclose(out["files"], image, atol=1e-5)
    np.testing.assert_allclose(out["similarity"], text @ image.T, atol=1e-5)


@needs("onnx", "onnxscript", "onnxruntime")
@pytest.mark.parametrize("path", ["all", "closed-form"])
def test_onnx_gives_our_embeddings_for_any_number_of_rows(model, saved, latents, tmp_path, path):
    about = export(saved, tmp_path / "onnx", "onnx", path=path)
    code = """
import onnxruntime
for name in ("text", "image"):
    session = onnxruntime.InferenceSession(f"onnx/{name}.onnx")
    out[name] = session.run(None, {"latents": given[name]})[0]
    out[name + "1"] = session.run(None, {"latents": given[name][:1]})[0]
"""
    out = in_fresh_process(code, tmp_path, **latents)
    for name, rows in latents.items():
        ours = model.embed(name, rows).numpy() if path == "all" else closed_form(model, name, rows)
        np.testing.assert_allclose(out[name], ours, atol=1e-5)
        np.testing.assert_allclose(out[name + "1"], ours[:1], atol=1e-5)
        assert about["difference"][name] <= 1e-5


@needs("transformers")
def test_transformers_loads_the_adapters(model, saved, latents, tmp_path):
    export(saved, tmp_path / "hf", "transformers")
    code = """
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained("hf", trust_remote_code=True)
with torch.no_grad():
    out |= {name: rows.numpy() for name, rows in model(**{n: torch.from_numpy(given[n]) for n in given}).items()}
"""
    out = in_fresh_process(code, tmp_path, **latents)
    for name, rows in latents.items():
        np.testing.assert_allclose(out[name], model.embed(name, rows).numpy(), atol=1e-6)


@needs("sentence_transformers")
@pytest.mark.slow
def test_a_text_encoder_in_a_folder_keeps_its_pooling_prefix_and_limit(tmp_path):
    import transformers

    from fusemix.export import sentence_transformer

    torch.manual_seed(0)
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "find", "a", "dog", "b"])
    )
    tokenizer = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"), model_max_length=6)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=9, max_position_embeddings=16, **shape))
    bert.eval().save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    encoder = load_encoder(f"hub-text:{tmp_path / 'bert'}?pooling=cls+mean&prefix=find ")
    made = FusionModel(
        ModelConfig(
            latent_dims={"text": 32, "image": 4}, encoders={"text": encoder.info(), "image": encoder.info()},
            embed_dim=8, closed_form_dim=4,
        )
    )  # fmt: skip
    made.adapters["text"].linear.normal_()
    modules = sentence_transformer.export(
        made, {"text": encoder}, tmp_path / "st", path="closed-form", modalities=["text"]
    )
    texts = ["a dog", "dog b a dog b a b dog", "b"]  # the second is cut
    code = """
from sentence_transformers import SentenceTransformer
out["text"] = SentenceTransformer("st").encode(["a dog", "dog b a dog b a b dog", "b"])
"""
    expected = closed_form(made, "text", encoder.encode(texts))
    np.testing.assert_allclose(in_fresh_process(code, tmp_path)["text"], expected, atol=1e-5)
    assert modules


@needs("mteb")
def test_mteb_gives_our_recall(model, saved, latents, tmp_path):
    export(saved, tmp_path / "mteb", "mteb")
    text, image = (model.embed(m, latents[m]).numpy() for m in ("text", "image"))
    nearest = (text @ image.T).argmax(axis=1)
    asked = np.array([nearest[0], nearest[1], (nearest[2] + 1) % 3])  # the last query misses
    code = """
import sys; sys.path.insert(0, "mteb")
from PIL import Image
from model import load
from fusemix.export.mteb_tasks import retrieval_task
import mteb
queries = ["a dog runs on the grass", "Two  CHILDREN\\nplay", "ship"]
pictures = [Image.open(f"{i}.png") for i in range(3)]
task = retrieval_task("Tiny", "text", "image", queries, pictures, given["asked"].tolist(), [0, 1, 2])
scores = mteb.evaluate(load(), task, cache=None).task_results[0].scores["test"][0]
out["recall"] = scores["hit_rate_at_1"]
"""
    assert in_fresh_process(code, tmp_path, asked=asked)["recall"] == pytest.approx(2 / 3, abs=1e-4)


def test_of_an_ensemble_the_first_members_closed_form_is_exported(model, latents):
    from fusemix.export.heads import head

    torch.manual_seed(1)
    other = FusionModel(ModelConfig.from_dict(model.config.to_dict() | {"views": (), "embed_dim": 12}))
    joined = join_models([model, other])
    with torch.no_grad():
        ours = head(joined, "text", "closed-form")(torch.from_numpy(latents["text"])).numpy()
    np.testing.assert_allclose(ours, closed_form(model, "text", latents["text"]), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--to", "onnx", "--modality", "audio"], "This model embeds ['image', 'text'], not 'audio'."),
        (["--to", "transformers", "--path", "closed-form"], "choose sentence-transformers or onnx"),
        (["--to", "mteb", "--modality", "text"], "takes the whole model"),
    ],
)
def test_what_cannot_be_exported_says_what_can(saved, tmp_path, capsys, arguments, sentence):
    assert command.main([str(saved), str(tmp_path / "out"), *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_papers_adapters_have_no_closed_form_to_export(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="no closed form .*; export all its paths"):
        export(tiny_model.save_pretrained(tmp_path / "paper"), tmp_path / "out", "onnx", path="closed-form")


@needs("sentence_transformers")
def test_latents_made_elsewhere_are_exported_without_an_encoder(tmp_path):
    given = {"name": "given", "dim": 4, "revision": "", "fingerprint": "given latents"}
    encoders = {modality: given | {"modality": modality} for modality in ("text", "image")}
    config = ModelConfig(latent_dims={"text": 4, "image": 4}, encoders=encoders)
    folder = FusionModel(config).save_pretrained(tmp_path / "mine")
    with pytest.raises(ValueError, match="no encoder can be exported; the targets onnx and transformers"):
        export(folder, tmp_path / "out", "sentence-transformers")


def test_a_folder_that_holds_something_is_left_alone(saved, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        export(saved, tmp_path, "onnx")
