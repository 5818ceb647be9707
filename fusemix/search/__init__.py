"""Indexes of embeddings, the correction of hubs and the Retriever."""
