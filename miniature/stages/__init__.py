"""The stages of the miniature's training. Each says what one step is; `stretch` runs them.

vae, encoders and base come in this order. decoder and vision go on with what the base does not rest on, at any
time after it has begun.
"""
