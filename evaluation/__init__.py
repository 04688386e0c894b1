"""Scores: pure maths in a file each; encoders and detectors behind small loaders.

quality.py     how well a picture's objects can be told apart and named     text_image.py  CLIP-like encoders
"""
