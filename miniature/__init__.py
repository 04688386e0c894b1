"""The miniature: a stand-in for SDXL, small enough to ship with the pack and to sample on a CPU.

config.py          shapes of its models
comfy_bundle.py    the models as ComfyUI's objects, with their weights
world.py           the world that it draws: scenes and references, sampled and rendered
world_shapes.py    kinds of objects
world_looks.py     patterns and colours
world_words.py     captions
world_split.py     pairs of kinds and looks that training never sees
drawing.py         one object as a reference picture
judge.py           finds and names a picture's objects from pixels
judge_looks.py     reads an object's look from pixels
judgement.py       whether objects are there and wear their own references' looks
pixel_detector.py  the judge as a detector
"""
