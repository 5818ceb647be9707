"""Generation of pictures from embeddings: conditioners, guidance and Stable unCLIP pipelines."""

from fusemix.extras import extra

with extra("generate", "Drawing pictures", "diffusers", "transformers"):
    pass
