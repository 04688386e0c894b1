"""The commands of `python mip.py`.

train.py       train an adapter or its fusion head
dataset.py     training data from pictures with captions
curate.py      object quality scores of training pictures, and the choice of the best
convert.py     torch pickles to .safetensors
demo.py        the demo: run a workflow on a server, fetch its pictures
demo_sheet.py  the demo's pictures in one sheet, judged
options.py     options that several commands have
comfy_base.py  the models that commands load
concept101/    the paper's table
labelling/     what dataset.py needs: reading, words, boxes and masks
curation/      what curate.py needs: reading, scoring, table, contact sheet
"""
