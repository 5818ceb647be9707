"""FuseMix (mixup on latents), the contrastive loss and the training loop."""
