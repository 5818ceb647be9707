"""FusionModel: its configuration, adapters, closed forms, checkpoints and their cards."""
