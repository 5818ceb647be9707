"""Search: indexes of embeddings, correction for hubness, and the Retriever."""
