"""FuseMix, the contrastive loss and the training loop."""
