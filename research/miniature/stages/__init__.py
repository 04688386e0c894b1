"""The stages of the miniature's training. Each says what one step is; `stretch` runs them.

vae, encoders, base and places come in this order. vision goes on with the image encoder, on which the base does not
rest, at any time after encoders.
"""
