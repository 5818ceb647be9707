"""The small Stable unCLIP decoder: its networks and their training."""
