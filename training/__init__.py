"""Training an adapter or its fusion head on pictures with several objects, by the paper's recipe (arXiv 2409.17920).

config.py    the recipe and its defaults        method.py      the site with gradients; what is trained
filters.py   which objects of a picture count   trainer.py     the loop; learner.py one update
pictures.py  crops and cut-out references       state.py       checkpoints of a run, resumed bit by bit
dataset.py   a folder of training data          save.py        the result as a file
processes.py one process or many                host_*.py      the only files that know ComfyUI
"""
