"""Scores of pictures, and the encoders and detectors that they need.

encoders/             pictures and words to embeddings
detection/            objects found in pictures: detectors, boxes of other nodes, matching to object texts
faces/                faces found in photographs, aligned, recognised
quality/              object quality score: do a picture's objects look like their texts, and unlike each other?
binding/              binding report: did each object take its look from its own reference?
relevance_score/      object relevance score: does noise by relevance change the picture where the object is?
concept101/           the paper's benchmark: data, scores, table
personalization.py    CLIP-T, CLIP-I and DINO, of whole pictures and of crops
object_embeddings.py  the objects of pictures: matched, cut out and embedded
model_folder.py       models from local Hugging Face folders
comfy_models.py       models from such folders, managed by ComfyUI
"""
