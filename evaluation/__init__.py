"""Scores: pure maths in a file each; encoders and detectors behind small loaders.

detections.py  what was found in pictures       crops.py      objects cut out of pictures, as in training
objects.py     the objects of pictures, encoded batches.py    as much at once as memory allows
encoders.py    words and pictures to vectors    folders.py    models from local Hugging Face folders
host_encoder.py  the host's own encoders        host_models.py  models of folders in the host's care
detect.py      objects by their words: detect_folder.py (Grounding DINO, …), detect_pixels.py (miniature)
boxes.py       boxes of other nodes, in and out box_formats.py  what they look like
quality.py     can a picture's objects be told apart and named?
relevance_score.py  does noise by relevance meet its object?  relevance_target.py  where that is
personalization.py  CLIP-T, CLIP-I, DINO            things.py     what is in a picture, everything once
binding.py     whose look has which object?     binding_report.py  measured and written down
findings.py    exchanged, blended, missing, …   verdict.py    the same in words, with advice
concept101.py  the paper's benchmark
"""
