"""The stages of the miniature's training. Each stage defines one step; stage_trainer.py runs them.

The order is vae, encoders, base, places, adapters. vision continues the image encoder, which the base does not depend
on, at any time after encoders.

comfy_recipe.py    what each stage needs; training, gate and export of the stages
stage_trainer.py   the training loop, with checkpoints
vae.py             stage 1: the autoencoder
encoders.py        stage 2: the text and image encoders
captions.py        captions as token ids
base.py            stage 3: the UNet
latents.py         its scenes as latents
noise_schedule.py  its noise schedule
word_grounding.py  stage 4, places: the UNet's words learn where their objects are
gate.py            the test that the base must pass before adapters are trained
comfy_adapters.py  stage 5: the adapters, by the trainer of `training/`
comfy_frozen.py    the miniature as the frozen model of that trainer
paired.py          its scenes with references
prefetch.py        batches prepared ahead of time
precision.py       the dtype of activations
cuda_graph.py      a backward pass recorded as a CUDA graph
packing.py         checkpoints small enough for the repository
unaided.py         aside from the others: the base learns by itself where its words' objects are
edit.py            aside, too: a stand-in for edit models, with references in its own sequence
export.py          trained stages as the loader's files
provenance.py      on which machine and with which code something was trained
"""
