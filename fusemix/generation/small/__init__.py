"""The small Stable unCLIP decoder of our own: its networks and their training."""
