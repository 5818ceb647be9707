"""Tables of pairs and the stores of latents made from them."""
