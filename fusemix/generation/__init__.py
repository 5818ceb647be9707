"""Pictures from embeddings: conditioners, guidance and Stable unCLIP pipelines."""
